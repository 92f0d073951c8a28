"""Waves and token ids in the feature store, for encoders that are trained from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import tone
from helpers.tiny_encoders import save_speech_model, save_text_model
from torch import Tensor

from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.encoders.registry import load_speech, load_text
from multistill.encoders.stored_inputs import (
    WAVE_COLUMNS,
    StoredWaves,
    decode_waves,
    encode_wave,
)
from multistill.encoders.trainable import load_trainable
from multistill.features.collate import collate
from multistill.features.decode import Wave, normalize
from multistill.features.store import FeatureStore
from multistill.features.store_writer import finish_store, read_marker
from multistill.features.waves import DecodedShard
from multistill.features.worker import ShardEncoder
from multistill.typing import AnyArray

CPU = torch.device("cpu")
TEXTS = ["good day days", "", "good bad night day good good"]


def waves(lengths: Sequence[int] = (16_000, 9_001, 12_345)) -> list[AnyArray]:
    return [normalize(tone(n / 16_000 + 0.1, 150 + i, seed=i)[:n]) for i, n in enumerate(lengths)]


def padded(rows: Sequence[AnyArray]) -> tuple[Tensor, Tensor]:
    width = max(len(each) for each in rows)
    batch = torch.zeros(len(rows), width, WAVE_COLUMNS, dtype=torch.int16)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, each in enumerate(rows):
        batch[row, : len(each)] = torch.from_numpy(each)
        mask[row, : len(each)] = True
    return batch, mask


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_speech_model(tmp_path_factory.mktemp("speech"), "wav2vec2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"), "bert")


def encoded(
    folder: Path, speech: Path, text: Path, train: Any, dtype: str = "float32"
) -> tuple[FeaturesConfig, FeatureStore]:
    """A store that an encoder process has written of three clips."""
    config = FeaturesConfig.model_validate(
        {
            "speech": {"model": str(speech), "train": train},
            "text": {"model": str(text), "train": train},
            "dtype": dtype,
        }
    )
    encoder = ShardEncoder(config, {"speech": None, "text": None}, "cpu")
    clips = {row: Wave(wave) for row, wave in enumerate(waves())}
    names = [f"u{row}" for row in clips]
    encoder.write(DecodedShard(names, names, TEXTS, clips), 0, folder)
    marker = read_marker(folder, 0)
    assert marker is not None
    assert marker["rows"] == 3, marker["quarantined"]
    described = {"speech": marker["speech"], "text": marker["text"]}
    dims = {"audio_dim": encoder.speech.info.dim, "text_dim": encoder.text.info.dim}
    finish_store(folder, [marker], {"dtype": dtype, **dims, **described})
    return config, FeatureStore(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_inputs_stay_integers_whatever_type_states_have(
    tmp_path: Path, speech: Path, text: Path, dtype: str
) -> None:
    _, store = encoded(tmp_path, speech, text, "full", dtype)
    assert (store.info["speech"]["stored"], store.info["text"]["stored"]) == ("waves", "tokens")
    assert (store.audio_dim, store.text_dim) == (WAVE_COLUMNS, 1)
    assert (store.audio("u0").dtype, store.text("u0").dtype) == (np.int16, np.int32)
    # 50 rows a second, as every limit of a batch counts them.
    assert store.audio_frames(["u0", "u1", "u2"]).tolist() == [50, 29, 39]
    assert (store.audio("u1") == encode_wave(waves()[1])).all()
    batch = collate(store, ["u0", "u1", "u2"], max_frames=40)
    assert (batch.audio.dtype, batch.text.dtype) == (torch.int16, torch.int32)
    assert batch.audio.shape == (3, 40, WAVE_COLUMNS)
    assert not batch.audio[1, 29:].any()
    assert not batch.text[1].any()
    assert collate(store, []).audio.shape == (0, 1, WAVE_COLUMNS)


@pytest.mark.parametrize("train", ["full", "last-2", {"kind": "lora", "layers": 1}])
def test_through_the_store_states_are_those_of_the_frozen_encoders(
    tmp_path: Path, speech: Path, text: Path, train: Any
) -> None:
    """Waves but for the rounding to 16 bits; hidden states and token ids to 1e-5."""
    config, store = encoded(tmp_path, speech, text, train)
    batch = collate(store, ["u0", "u1", "u2"])
    with torch.no_grad():
        heard, heard_mask = load_trainable("speech", config.speech, None).eval()(
            batch.audio, batch.audio_mask
        )
        read, read_mask = load_trainable("text", config.text, None).eval()(
            batch.text, batch.text_mask
        )
    frozen = FeaturesConfig.model_validate({"speech": str(speech), "text": str(text)})
    listener = load_speech(frozen.speech, None, CPU)
    reader = load_text(frozen.text, None, CPU)
    bound = 0.01 if train == "full" else 1e-5
    for row, (wave, words) in enumerate(zip(waves(), TEXTS, strict=True)):
        [states] = listener.encode([wave])
        own = heard[row, heard_mask[row]].numpy()
        assert own.shape == states.shape
        assert np.abs(own - states).max() < bound
        [states] = reader.encode([words])
        own = read[row, read_mask[row]].numpy()
        assert own.shape == states.shape
        assert np.abs(own - states).max(initial=0.0) < 1e-5


def test_stored_waves_are_the_decoded_ones_but_for_rounding() -> None:
    clips = [*waves(), np.zeros(700, np.float32)]
    stored = StoredWaves(SpeechEncoderConfig(model="m", train="full"), "pretrained", "r")
    encoded = stored.encode(clips)
    assert [len(each) for each in encoded] == [stored.frames(len(clip)) for clip in clips]
    decoded, samples = decode_waves(*padded(encoded), 400)
    assert samples.tolist() == [len(clip) for clip in clips]
    for clip, wave in zip(clips, decoded, strict=True):
        step = np.abs(clip).max() / 32767
        assert np.abs(wave[: len(clip)].numpy() - clip).max() <= step + 1e-6
        assert not wave[len(clip) :].any()


def test_a_part_of_a_stored_wave_is_the_start_of_the_clip() -> None:
    """`max_frames` of a model cuts stored rows."""
    [clip] = waves([9_001])
    decoded, samples = decode_waves(*padded([encode_wave(clip)[:10]]), 400)
    assert samples.tolist() == [3200]
    assert np.corrcoef(decoded[0].numpy(), clip[:3200])[0, 1] > 0.9999
