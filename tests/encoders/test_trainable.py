"""Trained encoders: states of frozen ones at the start; only what is intended is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import tone
from helpers.tiny_encoders import (
    LAYERS,
    SPEECH,
    TEXT,
    WIDTH,
    save_speech_model,
    save_text_model,
    whisper_encoder,
)
from torch import Tensor, nn

from multistill.config import SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders.adapters import add_adapters
from multistill.encoders.masking import SpecAugment
from multistill.encoders.registry import load_speech, load_text
from multistill.encoders.stored_inputs import StoredWaves, decode_waves, encode_wave
from multistill.encoders.trainable import TrainableEncoder, load_trainable
from multistill.encoders.whisper import WhisperStates
from multistill.errors import MultistillError, UsageError
from multistill.features.decode import normalize
from multistill.typing import AnyArray

CPU = torch.device("cpu")
SAMPLES = [16_000, 9_001, 12_345, 12_345]
TEXTS = ["good day days", "bad", "", "good bad night day good good"]
KINDS = ["full", "last-2", "lora", "adapter"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    saved = {kind: save_speech_model(root / kind, kind) for kind in SPEECH}
    return saved | {kind: save_text_model(root / kind, kind) for kind in TEXT}


def waves(lengths: Sequence[int] = SAMPLES) -> list[AnyArray]:
    return [normalize(tone(n / 16_000 + 0.1, 150 + i, seed=i)[:n]) for i, n in enumerate(lengths)]


def padded(rows: Sequence[AnyArray]) -> tuple[Tensor, Tensor]:
    """Rows of clips as one batch and its mask, as `features.collate` makes them."""
    tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in rows]
    sizes = torch.tensor([len(each) for each in tensors])
    width = max(1, int(sizes.max()))
    batch = torch.zeros(len(tensors), width, tensors[0].shape[1], dtype=tensors[0].dtype)
    for row, each in enumerate(tensors):
        batch[row, : len(each)] = each
    return batch, torch.arange(width) < sizes[:, None]


def speech(models: dict[str, Path], kind: str, **keys: Any) -> SpeechEncoderConfig:
    return SpeechEncoderConfig(model=str(models[kind]), **keys)


def load(config: Any, kind: str = "whisper") -> tuple[Any, TrainableEncoder]:
    """What fills the store, and the trained part."""
    if isinstance(config, TextEncoderConfig):
        return load_text(config, None, CPU), load_trainable("text", config, None)
    if config.model != "whisper":
        return load_speech(config, None, CPU), load_trainable("speech", config, None)
    stored: Any = StoredWaves(config, "untrained", None)
    frozen = config.model_copy(update={"train": SpeechEncoderConfig().train})
    of = {"weights": "untrained", "revision": None, "device": CPU}
    if config.train.layers is not None:
        stored = WhisperStates(whisper_encoder(), config, **of)
    network = WhisperStates(whisper_encoder(), frozen, **of).network
    return stored, TrainableEncoder(network, config, None)


def load_frozen(config: Any) -> Any:
    config = config.model_copy(update={"train": SpeechEncoderConfig().train})
    if isinstance(config, TextEncoderConfig):
        return load_text(config, None, CPU)
    if config.model == "whisper":
        return WhisperStates(whisper_encoder(), config, "untrained", revision=None, device=CPU)
    return load_speech(config, None, CPU)


def frozen_states(encoder: Any, inputs: Sequence[Any]) -> list[AnyArray]:
    return [encoder.encode([each])[0] for each in inputs]


def trained_states(loaded: tuple[Any, TrainableEncoder], inputs: Sequence[Any]) -> list[AnyArray]:
    """States of a padded batch through the store and the trained part, without padding."""
    stored, trained = loaded
    rows = [stored.encode([each])[0] for each in inputs]
    with torch.no_grad():
        states, mask = trained.eval()(*padded(rows))
    assert states.dtype == torch.float32
    assert not states[~mask].any()
    return [each[keep].numpy() for each, keep in zip(states, mask, strict=True)]


def assert_close(found: Sequence[AnyArray], expected: Sequence[AnyArray], bound: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0.0) < bound * np.abs(other).max(initial=1.0)


@pytest.mark.parametrize(
    ("kind", "train"),
    [
        (kind, train)
        for kind in [*SPEECH, "whisper"]
        for train in KINDS
        if (kind, train) != ("wav2vec2-conformer", "last-2")
    ],
)
def test_before_training_states_are_those_of_the_frozen_encoder(
    models: dict[str, Path], kind: str, train: str
) -> None:
    """Of clips of different length in one batch: padding changes nothing."""
    config = SpeechEncoderConfig(model=str(models.get(kind, kind)), train=train)
    clips = waves()
    if config.train.layers is None:
        # What int16 rounds away is not of the encoder.
        rows, mask = padded([encode_wave(clip) for clip in clips])
        decoded, _ = decode_waves(rows, mask, 400)
        clips = [wave[:n].numpy() for wave, n in zip(decoded, SAMPLES, strict=True)]
    expected, loaded = frozen_states(load_frozen(config), clips), load(config)
    found = trained_states(loaded, clips)
    assert_close(trained_states(loaded, clips[1:2]), found[1:2], 1e-5)
    if kind == "whisper" and train == "last-2":
        # The store keeps what the layers attend to: also the state of half a frame at the end.
        found = [each[: len(other)] for each, other in zip(found, expected, strict=True)]
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("kind", TEXT)
def test_before_training_states_of_text_are_those_of_the_frozen_encoder(
    models: dict[str, Path], kind: str, train: str
) -> None:
    config = TextEncoderConfig(model=str(models[kind]), train=train)
    loaded, frozen = load(config), load_frozen(config)
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:3]):
        assert_close(trained_states(loaded, texts), frozen_states(frozen, texts), 1e-5)


def part(models: dict[str, Path], kind: str, train: Any, **keys: Any) -> TrainableEncoder:
    model = str(models.get(kind, kind))
    if kind in TEXT:
        return load(TextEncoderConfig(model=model, train=train, **keys))[1]
    return load(SpeechEncoderConfig(model=model, train=train, **keys))[1]


def rows(config: Any, kind: str = "wav2vec2") -> tuple[Tensor, Tensor]:
    """A stored batch of three clips."""
    stored, _ = load(config)
    inputs: Sequence[Any] = TEXTS if isinstance(config, TextEncoderConfig) else waves()
    return padded([stored.encode([each])[0] for each in inputs])


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-group", "wavlm", "whisper", "electra"])
def test_every_trained_parameter_gets_a_gradient_and_no_other_one(
    models: dict[str, Path], kind: str, train: str
) -> None:
    section = TextEncoderConfig if kind in TEXT else SpeechEncoderConfig
    config = section(model=str(models.get(kind, kind)), train=train)
    _, encoder = load(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in encoder.trained_state().items():
            # Without this, what comes before a zero matrix has no gradient yet.
            if "lora_B" in name or "adapter.up" in name:
                tensor.normal_()
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    states, _ = encoder(*rows(config))
    states.square().sum().backward()
    trained = encoder.trained_state()
    assert trained
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (name in trained)
        # A constant added to every key changes no attention.
        useful = "k_proj.bias" not in name and "key.bias" not in name
        assert (parameter.grad is not None) == (name in trained), name
        assert not useful or name not in trained or bool(parameter.grad.any()), name
        assert torch.equal(parameter, before[name])
    kinds = {"lora": "lora_", "adapter": "adapter."}
    assert all(kinds.get(train, "") in name for name in trained)


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("kind", ["wav2vec2", "whisper", "bert"])
def test_groups_name_every_trained_parameter_once_from_the_top_layer_down(
    models: dict[str, Path], kind: str, train: str
) -> None:
    encoder = part(models, kind, train)
    groups = encoder.layer_groups()
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(encoder.trained_state())
    assert len(groups) == {"full": LAYERS + 1, "last-2": 2}.get(train, LAYERS)
    highest = {"last-2": 1}.get(train, LAYERS - 1)
    for depth, group in enumerate(groups[: highest + 1]):
        assert all(f".{highest - depth}." in name or "norm" in name for name in group)


@pytest.mark.parametrize("train", KINDS)
def test_the_trained_part_is_restored_from_its_state_alone(
    models: dict[str, Path], train: str
) -> None:
    config = speech(models, "wav2vec2", train=train)
    _, encoder = load(config)
    with torch.no_grad():
        for tensor in encoder.trained_state().values():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    stored = {name: value.clone() for name, value in encoder.trained_state().items()}
    torch.manual_seed(7)
    other = part(models, "wav2vec2", train)
    batch = rows(config)
    assert not torch.allclose(other.eval()(*batch)[0], encoder.eval()(*batch)[0])
    other.load_trained_state(stored)
    assert torch.equal(other.eval()(*batch)[0], encoder.eval()(*batch)[0])


def test_the_state_of_another_encoder_is_refused(models: dict[str, Path]) -> None:
    stored = part(models, "wav2vec2", "lora").trained_state()
    with pytest.raises(MultistillError, match="does not fit"):
        part(models, "wav2vec2", {"kind": "lora", "rank": 3}).load_trained_state(stored)
    with pytest.raises(MultistillError, match="another encoder"):
        part(models, "bert", "lora").load_trained_state(stored)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper", "bert"])
def test_gradient_checkpointing_changes_no_gradient(models: dict[str, Path], kind: str) -> None:
    found = []
    section = TextEncoderConfig if kind in TEXT else SpeechEncoderConfig
    for again in (False, True):
        train = {"kind": "full", "gradient_checkpointing": again}
        config = section(model=str(models.get(kind, kind)), layers=[1, 3], train=train)
        batch = rows(config)
        _, encoder = load(config)
        torch.manual_seed(3)
        states, _ = encoder(*batch)
        states.square().mean().backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.requires_grad})
        assert encoder.network.selector._recorded == {}
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


def test_a_deep_copy_is_an_encoder_of_its_own(models: dict[str, Path]) -> None:
    """Averages of weights are kept in a copy of the model."""
    for train in KINDS:
        config = speech(models, "wav2vec2", train=train, layers=[2, 3])
        batch = rows(config)
        _, encoder = load(config)
        copied = copy.deepcopy(encoder.eval())
        before, _ = encoder(*batch)
        with torch.no_grad():
            for tensor in encoder.trained_state().values():
                tensor.add_(0.5)
        assert torch.equal(copied(*batch)[0], before)


def test_dropout_of_the_checkpoint_is_drawn_in_training_and_no_layer_is_left_out(
    models: dict[str, Path],
) -> None:
    config = speech(models, "wav2vec2", train="last-2")
    batch = rows(config)
    _, encoder = load(config)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(encoder(*batch)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    encoder.eval()
    assert torch.equal(encoder(*batch)[0], encoder(*batch)[0])


@pytest.mark.parametrize("train", ["full", "last-2"])
@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_masks_are_drawn_in_training_only(models: dict[str, Path], kind: str, train: str) -> None:
    fields = {"kind": train, "time_mask": 0.3, "feature_mask": 0.2}
    config = SpeechEncoderConfig(model=str(models.get(kind, kind)), train=fields)
    plain = SpeechEncoderConfig(model=str(models.get(kind, kind)), train=train)
    batch = rows(config)
    encoder, other = load(config)[1], load(plain)[1]
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    encoder.network.model.config.dropout = 0.0
    assert torch.equal(encoder.eval()(*batch)[0], other.eval()(*batch)[0])
    torch.manual_seed(0)
    masked = encoder.train()(*batch)[0]
    assert not torch.allclose(masked, encoder.eval()(*batch)[0], atol=1e-3)


def test_masks_cover_the_share_that_is_asked_for() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(0.2, 0.0)(torch.ones(2000, 60, 1))[..., 0]
    assert float((masked == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    ends = (masked == 0).float().mean(dim=0)
    assert float(ends[0]) == pytest.approx(float(ends[30]), abs=0.04)
    features = SpecAugment(0.0, 0.4)(torch.ones(2000, 3, 60))
    assert float((features == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert torch.equal(features[:, 0], features[:, 2])


def test_rows_without_a_clip_have_no_states(models: dict[str, Path]) -> None:
    """As the batch of a rank without a row, and a clip whose audio is left out."""
    for kind, train in [("wav2vec2", "full"), ("wav2vec2", "last-2"), ("bert", "full")]:
        encoder = part(models, kind, train).eval()
        section = TextEncoderConfig if kind in TEXT else SpeechEncoderConfig
        batch, mask = rows(section(model=str(models[kind]), train=train))
        empty, none = encoder(batch[:0], mask[:0])
        assert empty.shape == (0, 1, encoder.dim)
        assert none.shape == (0, 1)
        mask = mask.clone()
        whole, kept = encoder(batch, mask)
        mask[1] = False
        states, found = encoder(batch, mask)
        assert not states[1].any()
        assert not found[1].any()
        others = [0, 2, 3]
        assert torch.allclose(states[others], whole[others], atol=1e-5)
        assert torch.equal(found[others], kept[others])


@pytest.mark.parametrize("layers", [[1], [0, -1]])
def test_states_below_the_trained_layers_are_refused(
    models: dict[str, Path], layers: list[int]
) -> None:
    with pytest.raises(UsageError, match=r"features\.speech"):
        part(models, "wav2vec2", "last-2", layers=layers)


def test_more_layers_than_there_are_are_refused(models: dict[str, Path]) -> None:
    assert part(models, "bert", "last-4").stored_dim == WIDTH
    with pytest.raises(UsageError, match=r"features\.text\.train: `last-5` trains 5 layers"):
        part(models, "bert", "last-5")
    # Layers above the highest selected state are not computed, and do not count.
    with pytest.raises(UsageError, match="layers uses 3"):
        part(models, "wav2vec2", "last-4", layers=[3])


def test_encoders_without_trainable_layers_are_refused() -> None:
    for config in (
        SpeechEncoderConfig(train="full"),
        TextEncoderConfig(model="use-multilingual", train="lora"),
        SpeechEncoderConfig(model="untrained-wav2vec2", train="last-1", long_clips="window"),
        TextEncoderConfig(train={"kind": "full", "time_mask": 0.1}),
    ):
        with pytest.raises(UsageError, match="train: "):
            load(config)


def test_the_top_layers_of_a_conformer_are_refused(models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="wav2vec2-conformer"):
        part(models, "wav2vec2-conformer", "last-2")


def test_an_adapter_is_as_wide_as_what_it_follows() -> None:
    layer, dense = nn.Module(), nn.Linear(8, 4)
    layer.attention = nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(8, 4)})})
    layer.output = nn.ModuleDict({"dense": dense})
    add_adapters([layer], 8, 2, "the encoder `x`")
    states = torch.randn(3, 8)
    torch.testing.assert_close(layer.output["dense"](states), dense(states))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_nothing_is_computed_backwards_through_the_convolutions(
    models: dict[str, Path], train: str
) -> None:
    encoder, read = part(models, "wav2vec2", train), []
    extractor = encoder.network.model.feature_extractor
    extractor.register_forward_hook(lambda _module, _inputs, output: read.append(output))
    encoder(*rows(speech(models, "wav2vec2", train=train)))
    assert read and not any(output.requires_grad for output in read)


def test_batch_norm_keeps_the_statistics_of_the_checkpoint(models: dict[str, Path]) -> None:
    config = speech(models, "wav2vec2-conformer", train="lora")
    _, encoder = load(config)
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(*rows(config))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper", "bert"])
def test_of_top_layers_nothing_below_is_kept_in_memory(models: dict[str, Path], kind: str) -> None:
    encoder = part(models, kind, "last-1")
    trained = sum(tensor.numel() for tensor in encoder.trained_state().values())
    held = sum(parameter.numel() for parameter in encoder.parameters())
    # WavLM's first layer has learnt the distances that all layers read.
    shared = 320 * 2 if kind == "wavlm" else 0
    norm = 2 * WIDTH if kind == "whisper" and not encoder.network.selector.reads_output else 0
    assert held == trained + shared + norm


@pytest.mark.parametrize("kind", ["full", "last-2", "lora", "adapter"])
def test_only_the_highest_layers_are_trained_with_top(models: dict[str, Path], kind: str) -> None:
    whole = load(speech(models, "wav2vec2", train=kind))[1]
    train = {**whole_settings(kind), "top": 1}
    stored, encoder = load(speech(models, "wav2vec2", train=train))
    assert encoder.layer_groups() == whole.layer_groups()[:1]
    assert stored.info.to_dict() == load(speech(models, "wav2vec2", train=kind))[0].info.to_dict()
    batch, mask = padded(stored.encode(waves()))
    encoder(batch, mask)[0].sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert trained == set(whole.layer_groups()[0]) == set(encoder.trained_state())


def whole_settings(kind: str) -> dict[str, Any]:
    return SpeechEncoderConfig(train=kind).train.model_dump()


def test_more_layers_from_the_top_than_there_are_is_refused(models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=f"more than the {LAYERS} layers"):
        load(speech(models, "wav2vec2", train={"kind": "full", "top": LAYERS + 1}))
