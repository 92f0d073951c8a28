"""Slimmed encoders: what is kept is the base's, and what is left out has no influence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_encoders import LAYERS, WIDTH, save_speech_model, whisper_encoder
from torch import Tensor

from multistill.config import SpeechEncoderConfig
from multistill.encoders.preflight import slimmed_problems
from multistill.encoders.slim import EncoderSizes
from multistill.encoders.source import EncoderSource
from multistill.encoders.stored_inputs import decode_waves, encode_wave
from multistill.encoders.trainable import TrainableEncoder
from multistill.encoders.whisper import SPEECH_LEVEL, WhisperNetwork
from multistill.errors import MultistillError, UsageError

HEADS, UNITS = 2, 48
KINDS = ("wav2vec2", "wav2vec2-group", "hubert", "data2vec-audio", "whisper")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    saved = {
        kind: save_speech_model(root / kind, kind)
        for kind in (*KINDS, "wavlm")
        if kind != "whisper"
    }
    encoder = whisper_encoder()
    encoder.config.architectures = ["WhisperModel"]
    encoder.save_pretrained(root / "whisper")
    return saved | {"whisper": root / "whisper"}


def config_of(model: object, train: Any = "full", **keys: Any) -> SpeechEncoderConfig:
    return SpeechEncoderConfig(model=str(model), train=train, **keys)


def source(model: Path, *sizes: int | None) -> EncoderSource:
    return EncoderSource("speech", config_of(model), None).slimmed(EncoderSizes(*sizes))


def stored() -> tuple[Tensor, Tensor]:
    """Two clips of different length, as the feature store keeps them."""
    random = torch.Generator().manual_seed(0)
    clips = [
        torch.from_numpy(encode_wave(torch.randn(n, generator=random).numpy()))
        for n in (16_000, 9_001)
    ]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    sizes = torch.tensor([len(clip) for clip in clips])
    return padded, torch.arange(padded.shape[1]) < sizes[:, None]


def states(encoder: TrainableEncoder) -> Tensor:
    with torch.no_grad():
        found: Tensor = encoder.eval()(*stored())[0]
    return found


def parts(layer: Any) -> tuple[Any, Any, Any]:
    if hasattr(layer, "fc1"):
        return layer.self_attn, layer.fc1, layer.fc2
    return layer.attention, layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense


def silence(layer: Any, heads: list[int], units: list[int]) -> None:
    """Give heads and units weights that write nothing, and so the smallest norms."""
    attention, into, out_of = parts(layer)
    with torch.no_grad():
        for head in heads:
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            attention.out_proj.weight[:, rows] = 0
            attention.v_proj.weight[rows] *= 1e-3
        out_of.weight[:, units] = 0
        into.weight[units] *= 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_what_writes_nothing_changes_no_state(
    models: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """The first head and every third unit, of the first two layers of the base."""
    from transformers import AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    load = WhisperEncoder if kind == "whisper" else AutoModel
    base = load.from_pretrained(models[kind])
    holder = base if kind == "whisper" else base.encoder
    units = list(range(0, UNITS, 3))
    for layer in holder.layers:
        silence(layer, [0], units)
    base.save_pretrained(tmp_path)
    slimmed = source(tmp_path, 2, HEADS - 1, UNITS - len(units)).load()
    whole = source(tmp_path, 2).load()
    torch.testing.assert_close(states(slimmed), states(whole), atol=1e-5, rtol=1e-5)
    count = [sum(p.numel() for p in each.parameters()) for each in (slimmed, whole)]
    assert count[0] < count[1]
    assert len(slimmed.network.selector.layers) == 2
    # The states of a layer, without the norm that follows the last one.
    below = hidden_state(base, kind)
    torch.testing.assert_close(states(whole)[0, : len(below)], below, atol=1e-4, rtol=1e-4)


def hidden_state(base: Any, kind: str) -> Tensor:
    """Hidden state 2 of the longer clip, by transformers itself; of Whisper by its layers."""
    rows, mask = stored()
    waves, _ = decode_waves(rows[:1], mask[:1], 400)
    with torch.no_grad():
        if kind != "whisper":
            base.config.apply_spec_augment = False
            return base.eval()(waves, output_hidden_states=True).hidden_states[2][0]
        return WhisperNetwork(base.eval(), [2], "mean", SPEECH_LEVEL)(waves, [16_000])[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(2, 1, 20), (None, 1, None), (LAYERS, None, 7)])
def test_weights_and_architecture_are_all_it_needs(
    models: dict[str, Path], kind: str, sizes: tuple[int | None, ...], tmp_path: Path
) -> None:
    folder = shutil.copytree(models[kind], tmp_path / "base")
    before = source(folder, *sizes).load()
    kept = {name: tensor.clone() for name, tensor in before.trained_state().items()}
    assert kept.keys() == dict(before.named_parameters()).keys()
    architecture = json.loads(json.dumps(before.architecture()))
    assert str(tmp_path) not in json.dumps(architecture)
    shutil.rmtree(folder)
    alone = EncoderSource(
        "speech", config_of(folder), None, slim=EncoderSizes(*sizes), architecture=architecture
    )
    after = alone.load()
    with pytest.raises(MultistillError, match="does not fit"):
        after.load_trained_state({"network": torch.zeros(3)})
    after.load_trained_state(kept)
    assert torch.equal(states(after), states(before))


def test_training_reaches_every_weight_that_is_not_frozen(models: dict[str, Path]) -> None:
    for kind in ("wav2vec2", "whisper"):
        encoder = source(models[kind], 2, 1, 20).load()
        encoder(*stored())[0].square().sum().backward()
        for name, parameter in encoder.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_wrong_sizes_are_told_before_anything_is_loaded(models: dict[str, Path]) -> None:
    def told(model: object, sizes: EncoderSizes, **keys: Any) -> str:
        return " ".join(slimmed_problems(config_of(model, **keys), sizes))

    assert told("smart-turn", EncoderSizes(2, 6, 1536)) == ""
    assert "2 layers of `smart-turn`" in told("smart-turn", EncoderSizes(3))
    for kind in KINDS:
        assert told(models[kind], EncoderSizes(LAYERS, HEADS, UNITS)) == ""
        assert f"{LAYERS} layers" in told(models[kind], EncoderSizes(LAYERS + 1))
        assert f"{HEADS} attention heads" in told(models[kind], EncoderSizes(None, HEADS + 1))
        assert f"{UNITS} feed-forward units" in told(models[kind], EncoderSizes(1, 1, UNITS + 1))
    assert "(wavlm) cannot be slimmed" in told(models["wavlm"], EncoderSizes(1))
    assert "name one layer" in told("smart-turn", EncoderSizes(1), layers=[1, 2])
    assert "set `train: full`" in told("smart-turn", EncoderSizes(1), train="last-1")
    with pytest.raises(UsageError, match="attention heads of"):
        source(models["wav2vec2"], None, WIDTH).load()
    with pytest.raises(UsageError, match="cannot be slimmed"):
        source(models["wavlm"], 1, 1).load()
