"""Encoders: states do not depend on the batch, layers are those of the model, loading, identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import save_electra, save_wav2vec2, tone

from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders.hub import UnavailableModelError, resolve
from multistill.encoders.packaged import PACKAGED
from multistill.encoders.registry import (
    BUILT_IN_SPEECH,
    BUILT_IN_TEXT,
    load_speech,
    load_text,
    resolve_speech,
    resolve_text,
)
from multistill.encoders.speech import ComparedWithFloat32, LogMel, Wav2Vec2Family
from multistill.errors import MultistillError, UsageError
from multistill.features.decode import normalize
from multistill.features.identity import features_identity
from multistill.features.worker import Window, batch_windows
from multistill.workspace import canonical

CPU = torch.device("cpu")
SAMPLES = [400, 719, 720, 5_000, 16_000, 16_001, 23_456]


def speech(model: str | Path, **keys: Any) -> Any:
    return load_speech(SpeechEncoderConfig(model=str(model), **keys), None, CPU)


def text(model: str | Path, **keys: Any) -> Any:
    return load_text(TextEncoderConfig(model=str(model), **keys), None, CPU)


def waves(lengths: list[int]) -> list[np.ndarray]:
    return [normalize(tone(n / 16_000, seed=n)[:n]) for n in lengths]


@pytest.fixture(scope="module")
def layer_norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wav2vec2(tmp_path_factory.mktemp("w2v-layer"))


@pytest.fixture(scope="module")
def group_norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wav2vec2(tmp_path_factory.mktemp("w2v-group"), norm="group")


@pytest.fixture(scope="module")
def electra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_electra(tmp_path_factory.mktemp("electra"))


@pytest.mark.parametrize("model", ["log-mel", "untrained-wav2vec2", "layer_norm"])
def test_states_do_not_depend_on_the_other_clips_of_a_batch(
    model: str, request: pytest.FixtureRequest
) -> None:
    encoder = speech(request.getfixturevalue(model) if model == "layer_norm" else model)
    clips = waves(SAMPLES)
    together = encoder.encode(clips)
    for clip, states in zip(clips, together, strict=True):
        [alone] = encoder.encode([clip])
        assert np.abs(alone - states).max() < 1e-5


def test_in_bfloat16_other_clips_change_states_within_the_documented_bounds() -> None:
    """docs/features.md: at most 1/16 for states of unit variance, a cosine above 0.9999."""
    encoder = speech("untrained-wav2vec2", precision="bfloat16")
    clips = waves([720, 5_000, 16_000])
    for clip, states in zip(clips, encoder.encode(clips), strict=True):
        [alone] = encoder.encode([clip])
        assert np.abs(alone - states).max() <= 1 / 16
        norms = np.linalg.norm(alone) * np.linalg.norm(states)
        assert (alone * states).sum() / norms > 0.9999


def test_a_layer_norm_model_depends_on_padding_without_its_mask(layer_norm: Path) -> None:
    encoder = speech(layer_norm)
    short, long = waves([5_000, 16_000])
    padded = np.concatenate([short, np.zeros(11_000, np.float32)])
    [alone] = encoder.encode([short])
    unmasked = encoder.encode([padded, long])[0][: len(alone)]
    assert np.abs(alone - unmasked).max() > 1e-3


def test_a_group_norm_model_requires_batches_of_equal_length(group_norm: Path) -> None:
    encoder = speech(group_norm)
    assert encoder.info.padding == "equal-length"
    with pytest.raises(ValueError, match="equal length"):
        encoder.encode(waves([5_000, 16_000]))
    clips = waves([5_000, 16_000, 5_000, 7_000, 5_000])
    windows = [Window(row, 0, wave) for row, wave in enumerate(clips)]
    for batch in batch_windows(windows, 80.0, equal=True):
        assert len({len(window.samples) for window in batch}) == 1
        together = encoder.encode([window.samples for window in batch])
        for window, states in zip(batch, together, strict=True):
            [alone] = encoder.encode([window.samples])
            assert np.abs(alone - states).max() < 1e-5


@pytest.mark.parametrize("model", ["log-mel", "untrained-wav2vec2"])
def test_frame_counts_follow_the_convolution_formula(model: str) -> None:
    encoder = speech(model)
    for samples in [400, 719, 720, 1_039, 1_040, 16_000, 20_000]:
        [states] = encoder.encode([tone(2.0)[:samples]])
        expected = (samples - 400) // 320 + 1
        assert len(states) == encoder.frames(samples) == expected
    assert encoder.frames(399) == 0
    assert encoder.minimum_samples == 400


def test_dropout_and_masking_of_the_checkpoint_are_off(
    layer_norm: Path,
) -> None:
    encoder = speech(layer_norm)
    [wave] = waves([16_000])
    assert (encoder.encode([wave])[0] == encoder.encode([wave])[0]).all()


def hidden_states(folder: Path, wave: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The inputs of all layers, and the output of the model."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(folder).eval()
    inputs: list[np.ndarray] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs: inputs.append(
                (args or [kwargs["hidden_states"]])[0][0].numpy()
            ),
            with_kwargs=True,
        )
    with torch.inference_mode():
        output = model(torch.from_numpy(wave)[None]).last_hidden_state[0].numpy()
    return inputs, output


def test_selected_layers_and_their_combinations_are_those_of_the_full_model(
    layer_norm: Path,
) -> None:
    [wave] = waves([9_000])
    inputs, output = hidden_states(layer_norm, wave)
    expected = [*inputs, output]

    def selected(layers: list[int], combine: str = "mean") -> np.ndarray:
        return speech(layer_norm, layers=layers, combine=combine).encode([wave])[0]

    assert np.abs(selected([-1]) - output).max() < 1e-5
    assert (selected([3]) == selected([-1])).all()
    for index in range(3):
        assert np.abs(selected([index]) - expected[index]).max() < 1e-5
        assert (selected([index - 4]) == selected([index])).all()
    assert np.abs(selected([0, 2]) - (expected[0] + expected[2]) / 2).max() < 1e-5
    both = selected([1, -1], "concat")
    assert np.abs(both - np.concatenate([expected[1], output], axis=1)).max() < 1e-5


def test_layers_above_the_highest_selected_one_are_removed(layer_norm: Path) -> None:
    params = [speech(layer_norm, layers=[k]).info.params for k in (1, 2, 3)]
    assert params[0] < params[1] < params[2]


def test_a_layer_that_does_not_exist_is_refused_with_the_valid_range(layer_norm: Path) -> None:
    with pytest.raises(UsageError, match=r"features\.speech\.layers: 7 .* it has 3.*0 to 3"):
        speech(layer_norm, layers=[7])


def test_a_checkpoint_that_lacks_weights_is_refused(layer_norm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((layer_norm / "config.json").read_text())
    weights = load_file(layer_norm / "model.safetensors")
    gone = next(name for name in weights if "layers.1.attention" in name)
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MultistillError, match="lacks weights"):
        speech(tmp_path)


def test_speech_and_text_models_cannot_be_swapped(layer_norm: Path, electra: Path) -> None:
    with pytest.raises(MultistillError, match="does not read raw audio"):
        speech(electra)
    with pytest.raises(MultistillError, match=r"features\.text\.model"):
        text(layer_norm)


def test_text_states_do_not_depend_on_the_other_texts_of_a_batch(electra: Path) -> None:
    sentences = ["나는 좋다", "good", "", "good day days good good day", "   "]
    for model in (electra, "untrained-electra"):
        encoder = text(model)
        together = encoder.encode(sentences)
        for sentence, states in zip(sentences, together, strict=True):
            [alone] = encoder.encode([sentence])
            assert alone.shape == states.shape
            assert np.abs(alone - states).max(initial=0) < 1e-5
        assert together[2].shape == together[4].shape == (0, encoder.info.dim)


def test_text_states_are_those_of_the_checkpoint_truncated_at_the_limit(electra: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    sentence = "good day " * 30
    tokens = AutoTokenizer.from_pretrained(electra)(
        sentence, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(electra).eval()(**tokens).last_hidden_state[0].numpy()
    [states] = text(electra, max_tokens=12).encode([sentence])
    assert states.shape == (12, 24)
    assert np.abs(states - expected).max() < 1e-5


def test_the_hashing_tokenizer_distinguishes_words_in_any_script() -> None:
    encoder = text("untrained-electra")
    one, two, same = encoder.encode(["나는 슬프다", "나는 기쁘다", "나는  슬프다"])
    assert np.abs(one - same).max() < 1e-6
    assert np.abs(one - two).max() > 0.1


def test_untrained_encoders_do_not_depend_on_the_global_random_state() -> None:
    [wave] = waves([4_000])
    torch.manual_seed(1)
    first = speech("untrained-wav2vec2").encode([wave])[0]
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = speech("untrained-wav2vec2").encode([wave])[0]
    assert (first == second).all()
    assert (torch.random.get_rng_state() == before).all()


def test_every_encoder_reports_whether_it_was_trained(layer_norm: Path) -> None:
    assert speech("log-mel").info.trained is None
    assert speech("untrained-wav2vec2").info.trained is False
    assert speech(layer_norm).info.trained is True


def test_log_mel_is_invariant_to_the_gain_of_the_microphone() -> None:
    encoder = LogMel()
    wave = tone(1.0)
    quiet, loud = (encoder.encode([normalize(wave * gain)])[0] for gain in (0.01, 0.9))
    assert np.abs(quiet - loud).max() < 1e-2


@pytest.mark.parametrize(("bands", "window_ms", "hop_ms"), [(80, 25, 20), (128, 128, 32)])
def test_log_mel_has_the_bands_and_the_frames_that_it_is_asked_for(
    bands: int, window_ms: int, hop_ms: int
) -> None:
    settings = {"model": "log-mel", "bands": bands, "window_ms": window_ms, "hop_ms": hop_ms}
    encoder = load_speech(SpeechEncoderConfig.model_validate(settings), None, CPU)
    for milliseconds in (window_ms, window_ms + hop_ms - 1, 1000):
        wave = tone(milliseconds / 1000)
        [states] = encoder.encode([wave])
        frames = (milliseconds - window_ms) // hop_ms + 1
        assert states.shape == (encoder.frames(len(wave)), encoder.info.dim) == (frames, bands)
    assert encoder.frames(window_ms * 16 - 1) == 0
    # A low tone is in a low band, and one of 7 kHz among the highest.
    time = np.arange(16_000) / 16_000
    peaks = [
        encoder.encode([np.sin(2 * np.pi * hertz * time).astype(np.float32)])[0].mean(0).argmax()
        for hertz in (200, 7_000)
    ]
    assert peaks[0] < 0.15 * bands and peaks[1] > 0.9 * bands


def test_a_model_that_is_not_found_is_reported_with_the_alternatives() -> None:
    for model in ("kresnik/wav2vec2-large-xlsr-korean", "./no-such-folder", "a/b/c d"):
        with pytest.raises(MultistillError, match=r"^features\.speech\.model: ") as caught:
            resolve_speech(SpeechEncoderConfig(model=model))
        message = str(caught.value)
        assert model in message
        assert "local folder" in message
        assert "use `log-mel` or `smart-turn` or `untrained-wav2vec2`" in message


def test_built_in_encoders_load_by_name_and_need_no_weights() -> None:
    for model in BUILT_IN_SPEECH.keys() - PACKAGED.keys():
        assert resolve_speech(SpeechEncoderConfig(model=model)) is None
        assert speech(model).info.name == model
    for model in BUILT_IN_TEXT.keys() - PACKAGED.keys():
        assert resolve_text(TextEncoderConfig(model=model)) is None
        assert text(model).info.name == model


def test_other_weights_give_another_identity(layer_norm: Path, tmp_path: Path) -> None:
    def identity(folder: Path) -> dict[str, Any]:
        config = FeaturesConfig.model_validate({"speech": {"model": str(folder)}})
        return features_identity(config)["weights"]

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in layer_norm.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert identity(copy) == identity(layer_norm)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert identity(copy) != identity(layer_norm)


def test_the_identity_contains_all_settings_that_change_states_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def identity(**keys: Any) -> str:
        return canonical(features_identity(FeaturesConfig.model_validate(keys)))

    same = identity()
    for workers in ({"encoders": 3}, {"decoders": 2}, {"batch_seconds": 5}, {"shard_seconds": 9}):
        assert identity(**workers) == same
    changed = [
        identity(**keys)
        for keys in (
            {"dtype": "int8"},
            {"speech": {"model": "untrained-wav2vec2"}},
            {"speech": {"layers": [0]}},
            {"speech": {"layers": [0, -1], "combine": "concat"}},
            {"speech": {"precision": "bfloat16"}},
            {"speech": {"long_clips": "window"}},
            {"speech": {"max_seconds": 9}},
            {"text": {"layers": [1]}},
            {"text": {"max_tokens": 9}},
        )
    ]
    for version in ("DECODER", "PADDING"):
        with monkeypatch.context() as patch:
            patch.setattr(f"multistill.features.identity.{version}", 99)
            changed.append(identity())
    assert len({same, *changed}) == 1 + len(changed)


def test_hubert_and_wavlm_are_loaded_as_the_wav2vec2_family(tmp_path: Path) -> None:
    from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (16,) * 7,
        "feat_extract_norm": "layer",
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    for name, model in (
        ("hubert", HubertModel(HubertConfig(**small))),
        ("wavlm", WavLMModel(WavLMConfig(**small))),
    ):
        model.save_pretrained(tmp_path / name)
        encoder = speech(tmp_path / name, layers=[0, 1, -1])
        assert isinstance(encoder, Wav2Vec2Family)
        clips = waves([5_000, 16_000])
        together = encoder.encode(clips)
        for clip, states in zip(clips, together, strict=True):
            assert np.abs(encoder.encode([clip])[0] - states).max() < 1e-5


@pytest.mark.parametrize("client", ["requests.exceptions", "httpx", "httpx2._exceptions"])
def test_an_error_of_any_http_client_is_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    """huggingface_hub has changed its client twice, and none of these errors is an OSError."""
    from huggingface_hub import HfApi

    error = type("ConnectError", (Exception,), {"__module__": client})

    def refuse(*_: object, **__: object) -> None:
        raise error("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(UnavailableModelError, match="model hub cannot be reached"):
        resolve("someone/some-encoder", None)


def test_a_comparison_that_fails_leaves_the_encoder_in_bfloat16() -> None:
    class Failing(ComparedWithFloat32):
        _bfloat16 = True

        def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
            assert not self._bfloat16
            raise RuntimeError("shape")

    encoder = Failing()
    with pytest.raises(RuntimeError, match="shape"):
        encoder.verify(waves([5_000]))
    assert encoder._bfloat16
