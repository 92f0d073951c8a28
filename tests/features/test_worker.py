"""What an encoder process does with clips that are long, broken, or too much for its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import save_wav2vec2, tone

from multistill.config import FeaturesConfig
from multistill.encoders.audio import Wave, normalize
from multistill.encoders.base import EncoderInfo
from multistill.errors import MultistillError
from multistill.features.actors import ATTEMPTS, counted
from multistill.features.store import FeatureStore, finish_store, read_marker
from multistill.features.waves import Decoded
from multistill.features.worker import Encoder
from multistill.typing import FloatArray


class Probe:
    """States [T, 2]: first and last sample of each receptive field. Fails on demand."""

    minimum_samples = 400
    hop = 320
    windowed = True
    facts = EncoderInfo("probe", "none", 2, 0, (), "mask")

    def __init__(self, memory: int = 10**9) -> None:
        self.memory = memory
        self.batches: list[int] = []

    def frames(self, samples: int) -> int:
        return (samples - 400) // 320 + 1

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        cost = len(waves) * max(len(wave) for wave in waves)
        if cost > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(cost)
        return [self.one(wave) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None: ...

    def one(self, wave: FloatArray) -> FloatArray:
        index = np.arange(self.frames(len(wave))) * 320
        states = np.stack([wave[index], wave[index + 399]], axis=1)
        return np.where(states > 90, np.nan, states).astype(np.float32)


def decoded(seconds: Sequence[float]) -> Decoded:
    names = [f"u{i}" for i in range(len(seconds))]
    waves = {i: Wave(normalize(tone(length, seed=i))) for i, length in enumerate(seconds)}
    return Decoded(names, [f"{name}.wav" for name in names], [""] * len(names), waves)


def encode(out: Path, clips: Decoded, probe: Probe, **keys: Any) -> tuple[dict[str, Any], Any]:
    encoder = Encoder(
        FeaturesConfig.model_validate({"dtype": "float32", **keys}),
        {"speech": None, "text": None},
        "cpu",
    )
    encoder.speech = probe
    facts = encoder.write(clips, 0, out)
    marker = read_marker(out, 0)
    assert marker is not None
    finish_store(out, [marker], {"dtype": "float32", "audio_dim": 2, "text_dim": 96})
    return facts, FeatureStore(out)


def test_out_of_memory_halves_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    clips = decoded([1.0] * 12)
    probe = Probe(memory=16_000 * 5)
    facts, store = encode(tmp_path, clips, probe, batch_seconds=12)
    assert facts["quarantined"] == []
    assert facts["encoded"] == 12
    for row, wave in clips.waves.items():
        assert np.array_equal(store.audio(f"u{row}"), probe.one(wave.samples))


def test_a_smaller_batch_is_remembered_after_out_of_memory(tmp_path: Path) -> None:
    probe = Probe(memory=16_000 * 5)
    encode(tmp_path / "a", decoded([1.0] * 24), probe, batch_seconds=12)
    assert len(probe.batches) == 24 / 3


def test_a_clip_that_alone_exceeds_the_memory_is_set_aside_with_advice(tmp_path: Path) -> None:
    facts, store = encode(tmp_path, decoded([1.0, 1.0, 9.0]), Probe(memory=16_000 * 2))
    [[name, path, reason]] = facts["quarantined"]
    assert (name, path) == ("u2", "u2.wav")
    assert "9.0 s do not fit" in reason
    assert "long_clips: window" in reason
    assert store.ids == ["u0", "u1"]


def test_a_clip_that_makes_nan_is_set_aside_alone(tmp_path: Path) -> None:
    clips = decoded([1.0, 1.0, 1.0])
    clips.waves[1].samples[0] = 100.0
    facts, store = encode(tmp_path, clips, Probe())
    assert [row[0] for row in facts["quarantined"]] == ["u1"]
    assert "not finite" in facts["quarantined"][0][2]
    assert store.ids == ["u0", "u2"]


def test_a_transcript_that_makes_nan_sets_its_clip_aside(tmp_path: Path) -> None:
    clips = decoded([1.0, 1.0, 1.0])
    clips.texts[1] = "nan"
    encoder = Encoder(FeaturesConfig(), {"speech": None, "text": None}, "cpu")
    whole = encoder.text.encode

    def broken(texts: Sequence[str]) -> list[FloatArray]:
        factors = [np.nan if text == "nan" else 1.0 for text in texts]
        return [states * factor for states, factor in zip(whole(texts), factors, strict=True)]

    encoder.text.encode = broken  # type: ignore[method-assign]
    facts = encoder.write(clips, 0, tmp_path)
    assert facts["encoded"] == 2
    assert facts["quarantined"] == [
        ["u1", "u1.wav", "the text encoder made values that are not finite"]
    ]


def test_bfloat16_is_used_and_measured_where_it_holds_and_refused_where_not(
    tmp_path: Path,
) -> None:
    def encoder(model: str) -> Encoder:
        speech = {"model": model, "precision": "bfloat16"}
        config = FeaturesConfig.model_validate({"speech": speech})
        return Encoder(config, {"speech": None, "text": None}, "cpu")

    facts = encoder("untrained-wav2vec2").write(decoded([0.5, 1.0]), 0, tmp_path / "store")
    assert 0.999 < facts["speech"]["bfloat16_cosine"] < 1
    # 16 random channels under a layer norm: rounding errors are blown up.
    shaky = encoder(str(save_wav2vec2(tmp_path / "shaky")))
    with pytest.raises(MultistillError, match=r"bfloat16 changes.*use `precision: float32`"):
        shaky.write(decoded([0.5, 1.0]), 0, tmp_path / "store")


def test_a_clip_too_short_for_one_state_is_set_aside(tmp_path: Path) -> None:
    clips = decoded([1.0, 0.02])
    facts, _ = encode(tmp_path, clips, Probe())
    assert facts["quarantined"] == [
        ["u1", "u1.wav", "too short: 320 samples at 16 kHz, needed are 400"]
    ]


def test_a_long_clip_in_windows_has_all_its_states(tmp_path: Path) -> None:
    clips = decoded([7.0, 2.0])
    keys = {"max_seconds": 3.0, "long_clips": "window", "window_seconds": 2.0}
    probe = Probe()
    facts, store = encode(tmp_path, clips, probe, speech=keys)
    assert facts["cut"] == 0
    assert max(probe.batches) < 16_000 * 80
    for row, wave in clips.waves.items():
        assert np.array_equal(store.audio(f"u{row}"), probe.one(wave.samples))


def test_two_windows_of_one_clip_may_fall_into_different_batches(tmp_path: Path) -> None:
    clips = decoded([7.3])
    keys = {"max_seconds": 3.0, "long_clips": "window", "window_seconds": 2.0}
    probe = Probe()
    _, store = encode(tmp_path, clips, probe, speech=keys, batch_seconds=2.1)
    assert len(probe.batches) > 3
    assert np.array_equal(store.audio("u0"), probe.one(clips.waves[0].samples))


def test_a_shard_of_failures_only_is_done_and_empty(tmp_path: Path) -> None:
    encoder = Encoder(FeaturesConfig(), {"speech": None, "text": None}, "cpu")
    facts = encoder.write(Decoded(["a"], ["a.wav"], [""], {}, {0: "empty"}), 3, tmp_path)
    assert facts["quarantined"] == [["a", "a.wav", "empty"]]
    marker = read_marker(tmp_path, 3)
    assert marker is not None
    assert marker["rows"] == 0


def test_a_shard_that_ends_every_worker_is_given_up_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for _ in range(ATTEMPTS):
        with pytest.raises(RuntimeError), counted(tmp_path, 4):
            raise RuntimeError("as if killed")
    with (
        pytest.raises(MultistillError, match=r"shard 4 ended its worker 5 times"),
        counted(tmp_path, 4),
    ):
        pass


def test_a_shard_that_succeeds_forgets_its_attempts(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for _ in range(ATTEMPTS * 2):
        with counted(tmp_path, 4):
            pass
    assert list((tmp_path / "shards").iterdir()) == []
