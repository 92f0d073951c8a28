"""Encoder processes with clips that are long, broken or too large for the memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.features_case import save_wav2vec2, tone
from safetensors.torch import load_file, save_file

from multistill.config import FeaturesConfig
from multistill.encoders.base import EncoderInfo
from multistill.errors import MultistillError
from multistill.features.actors import MAX_ATTEMPTS, EncodeShard, count_attempts
from multistill.features.decode import Wave, normalize
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, ShardWriter, finish_store, read_marker
from multistill.features.waves import DecodedShard, ShardSource
from multistill.features.worker import TEXTS_PER_BATCH, ShardEncoder
from multistill.typing import AnyArray, FloatArray

WINDOWS = {"max_seconds": 3.0, "long_clips": "window", "window_seconds": 2.0}


class FakeEncoder:
    """States [T, 2]: first and last sample of each receptive field, NaN for samples above 90.

    Args:
        memory: padded samples of a batch above which encoding runs out of memory.
    """

    minimum_samples = 400
    hop = 320
    windowed = True
    info = EncoderInfo("fake", "none", 2, 0, (), "mask")

    def __init__(self, memory: int = 10**9) -> None:
        self.memory = memory
        self.batches: list[int] = []
        self.failures = 0

    def frames(self, samples: int) -> int:
        return (samples - 400) // 320 + 1

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        cost = len(waves) * max(len(wave) for wave in waves)
        if cost > self.memory:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(cost)
        return [self.encode_one(wave) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None: ...

    def encode_one(self, wave: FloatArray) -> FloatArray:
        index = np.arange(self.frames(len(wave))) * 320
        states = np.stack([wave[index], wave[index + 399]], axis=1)
        return np.where(states > 90, np.nan, states).astype(np.float32)


class WaitingFor(FakeEncoder):
    """Encodes once something else has happened."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        assert self.event.wait(60), "it never happens while the speech encoder works"
        return super().encode(waves)


def decoded(seconds: Sequence[float]) -> DecodedShard:
    names = [f"u{i}" for i in range(len(seconds))]
    waves = {i: Wave(normalize(tone(length, seed=i))) for i, length in enumerate(seconds)}
    return DecodedShard(names, [f"{name}.wav" for name in names], [""] * len(names), waves)


def shard_encoder(fake: FakeEncoder | None = None, /, **keys: Any) -> ShardEncoder:
    config = FeaturesConfig.model_validate(keys)
    encoder = ShardEncoder(config, {"speech": None, "text": None}, "cpu")
    if fake is not None:
        encoder.speech = fake
    return encoder


def encode(
    out: Path, clips: DecodedShard, fake: FakeEncoder, /, **keys: Any
) -> tuple[dict[str, Any], FeatureStore]:
    summary = shard_encoder(fake, dtype="float32", **keys).write(clips, 0, out)
    marker = read_marker(out, 0)
    assert marker is not None
    dims = {"audio_dim": 2, "text_dim": marker["text"]["dim"]}
    finish_store(out, [marker], {"dtype": "float32", **dims})
    return summary, FeatureStore(out)


def test_out_of_memory_halves_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    clips = decoded([1.0] * 12)
    fake = FakeEncoder(memory=16_000 * 5)
    summary, store = encode(tmp_path, clips, fake, batch_seconds=12)
    assert summary["quarantined"] == []
    assert summary["encoded"] == 12
    for row, wave in clips.waves.items():
        assert np.array_equal(store.audio(f"u{row}"), fake.encode_one(wave.samples))


def test_batches_of_later_shards_fit_the_memory_that_an_earlier_one_exceeded(
    tmp_path: Path,
) -> None:
    fake = FakeEncoder(memory=16_000 * 5)
    encoder = shard_encoder(fake, batch_seconds=12)
    encoder.write(decoded([1.0] * 24), 0, tmp_path)
    assert len(fake.batches) == 24 / 3
    failures = fake.failures
    assert failures
    encoder.write(decoded([1.0] * 24), 1, tmp_path)
    assert fake.failures == failures
    assert fake.batches == [16_000 * 3] * 16


def test_a_clip_that_alone_exceeds_the_memory_is_quarantined_with_advice(tmp_path: Path) -> None:
    fake = FakeEncoder(memory=16_000 * 2)
    summary, store = encode(tmp_path, decoded([1.0, 1.0, 9.0]), fake)
    [[name, path, reason]] = summary["quarantined"]
    assert (name, path) == ("u2", "u2.wav")
    assert "9.0 s do not fit" in reason
    assert store.ids == ["u0", "u1"]


def test_a_clip_whose_states_are_nan_is_quarantined_alone(tmp_path: Path) -> None:
    clips = decoded([1.0, 1.0, 1.0])
    clips.waves[1].samples[0] = 100.0
    summary, store = encode(tmp_path, clips, FakeEncoder())
    assert [row[0] for row in summary["quarantined"]] == ["u1"]
    assert "not finite" in summary["quarantined"][0][2]
    assert store.ids == ["u0", "u2"]


def test_a_transcript_whose_states_are_nan_quarantines_its_clip(tmp_path: Path) -> None:
    clips = decoded([1.0, 1.0, 1.0])
    clips.texts[1] = "nan"
    encoder = shard_encoder()
    correct = encoder.text.encode

    def broken(texts: Sequence[str]) -> list[FloatArray]:
        factors = [np.nan if text == "nan" else 1.0 for text in texts]
        return [states * factor for states, factor in zip(correct(texts), factors, strict=True)]

    encoder.text.encode = broken  # type: ignore[method-assign]
    summary = encoder.write(clips, 0, tmp_path)
    assert summary["encoded"] == 2
    assert summary["quarantined"] == [
        ["u1", "u1.wav", "the text encoder made values that are not finite (u1.wav)"]
    ]


class Choosy(FakeEncoder):
    """Fails on waves that begin with 50, or on all of them."""

    def __init__(self, error: Exception, *, broken: bool = False) -> None:
        super().__init__()
        self.error = error
        self.broken = broken

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        if self.broken or any(wave[0] == 50 for wave in waves):
            raise self.error
        return super().encode(waves)


ERRORS = [
    RuntimeError("shape"), ValueError(""), IndexError("list"), KeyError("x"), AssertionError(),
    ZeroDivisionError(), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), OSError("cannot read"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_one_clip_raises_in_the_encoder_is_its_reason(
    tmp_path: Path, error: Exception
) -> None:
    clips = decoded([1.0] * 6)
    clips.waves[4].samples[0] = 50.0
    summary, store = encode(tmp_path, clips, Choosy(error))
    [[name, path, reason]] = summary["quarantined"]
    assert (name, path) == ("u4", "u4.wav")
    assert reason.startswith(f"the speech encoder failed: {type(error).__name__}: ")
    assert reason.endswith("(u4.wav)")
    assert store.ids == ["u0", "u1", "u2", "u3", "u5"]


def test_a_shard_with_a_single_clip_that_cannot_be_encoded_is_finished(tmp_path: Path) -> None:
    clips = decoded([1.0])
    clips.waves[0].samples[0] = 50.0
    encoder = shard_encoder(Choosy(RuntimeError("shape")), dtype="float32")
    assert encoder.write(clips, 0, tmp_path)["encoded"] == 0


@pytest.mark.parametrize("error", [*ERRORS, MemoryError(), MultistillError("settings")])
def test_an_encoder_that_works_for_no_clip_ends_the_stage_with_its_own_error(
    tmp_path: Path, error: Exception
) -> None:
    encoder = shard_encoder(Choosy(error, broken=True))
    with pytest.raises(type(error)):
        encoder.write(decoded([1.0, 1.0]), 0, tmp_path)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_one_transcript_raises_is_the_reason_of_its_clip(
    tmp_path: Path, error: Exception
) -> None:
    clips = decoded([1.0, 1.0, 1.0])
    clips.texts[:] = ["one", "bad", "three"]
    encoder = shard_encoder()
    correct = encoder.text.encode

    def choosy(texts: Sequence[str]) -> list[FloatArray]:
        if "bad" in texts:
            raise error
        return correct(texts)

    encoder.text.encode = choosy  # type: ignore[method-assign]
    summary = encoder.write(clips, 0, tmp_path)
    [[name, _, reason]] = summary["quarantined"]
    assert name == "u1"
    assert reason.startswith(f"the text encoder failed: {type(error).__name__}: ")
    assert summary["encoded"] == 2


def test_silent_clips_are_counted_and_named(tmp_path: Path) -> None:
    clips = decoded([1.0, 1.0])
    clips.waves[1] = Wave(normalize(np.zeros(16_000, np.float32)), silent=True)
    summary, _ = encode(tmp_path, clips, FakeEncoder())
    assert (summary["silent"], summary["silent_examples"]) == (1, ["u1"])


def test_bfloat16_is_measured_against_float32_and_refused_if_it_changes_the_states(
    tmp_path: Path,
) -> None:
    def encoder(model: str) -> ShardEncoder:
        return shard_encoder(speech={"model": model, "precision": "bfloat16"})

    accurate = encoder("untrained-wav2vec2")
    summary = accurate.write(decoded([0.5, 1.0]), 0, tmp_path / "store")
    assert 0.999 < summary["speech"]["bfloat16_cosine"] < 1
    folder = save_wav2vec2(tmp_path / "inaccurate")
    weights = load_file(folder / "model.safetensors")
    # A large bias on all channels: rounding to bfloat16 removes the differences between them,
    # which are all that the layer norm after it keeps.
    weights["feature_extractor.conv_layers.6.conv.bias"] += 1000.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MultistillError, match=r"bfloat16 changes.*use `precision: float32`"):
        encoder(str(folder)).write(decoded([0.5, 1.0]), 0, tmp_path / "store")


def test_a_clip_too_short_for_one_state_is_quarantined(tmp_path: Path) -> None:
    clips = decoded([1.0, 0.02])
    summary, _ = encode(tmp_path, clips, FakeEncoder())
    assert summary["quarantined"] == [
        ["u1", "u1.wav", "too short: 320 samples at 16 kHz, the minimum is 400 (u1.wav)"]
    ]


def test_a_long_clip_in_windows_has_all_its_states(tmp_path: Path) -> None:
    clips = decoded([7.0, 2.0])
    fake = FakeEncoder()
    summary, store = encode(tmp_path, clips, fake, speech=WINDOWS)
    assert summary["cut"] == 0
    assert max(fake.batches) < 16_000 * 80
    for row, wave in clips.waves.items():
        assert np.array_equal(store.audio(f"u{row}"), fake.encode_one(wave.samples))


def test_windows_of_one_clip_can_be_in_different_batches(tmp_path: Path) -> None:
    clips = decoded([7.3])
    fake = FakeEncoder()
    _, store = encode(tmp_path, clips, fake, speech=WINDOWS, batch_seconds=2.1)
    assert len(fake.batches) > 3
    assert np.array_equal(store.audio("u0"), fake.encode_one(clips.waves[0].samples))


def test_a_shard_of_failed_clips_only_is_done_and_empty(tmp_path: Path) -> None:
    clips = DecodedShard(["a"], ["a.wav"], [""], {}, {0: "empty"})
    summary = shard_encoder().write(clips, 3, tmp_path)
    assert summary["quarantined"] == [["a", "a.wav", "empty (a.wav)"]]
    marker = read_marker(tmp_path, 3)
    assert marker is not None
    assert marker["rows"] == 0


def test_a_shard_that_crashes_every_worker_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(RuntimeError), count_attempts(tmp_path, 4):
            raise RuntimeError("as if killed")
    with (
        pytest.raises(MultistillError, match=r"5 workers died while they worked on shard 4"),
        count_attempts(tmp_path, 4),
    ):
        pass


def test_a_successful_shard_resets_its_attempts(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for _ in range(MAX_ATTEMPTS * 2):
        with count_attempts(tmp_path, 4):
            pass
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_that_waits_to_be_decoded_is_not_attempted(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([path.name for path in (tmp_path / "shards").glob(".*.attempts")])

    class Turn:
        def __enter__(self) -> None:
            look()

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    def decode(plan: Path, shard: int, config: FeaturesConfig) -> DecodedShard:
        look()
        return decoded([1.0])

    weights = {"speech": None, "text": None}
    source = ShardSource((), decode)
    settings = FeaturesConfig().model_dump()
    worker = EncodeShard(settings, weights, "plan", str(tmp_path), False, 1, source)
    worker._decoding = Turn()  # type: ignore[assignment]
    [result] = worker(pa.table({"shard": [4]})).to_pylist()
    assert result["error"] is None
    assert seen == [[], [".00004.attempts"]]


def test_transcripts_are_encoded_while_the_speech_encoder_works(tmp_path: Path) -> None:
    """It waits for the last transcript, which would never come if they took turns."""
    transcripts_done = threading.Event()
    encoder = shard_encoder(WaitingFor(transcripts_done))
    correct = encoder.text.encode

    def last(texts: Sequence[str]) -> Sequence[AnyArray]:
        states = correct(texts)
        transcripts_done.set()
        return states

    encoder.text.encode = last  # type: ignore[method-assign]
    assert encoder.write(decoded([1.0] * 3), 0, tmp_path)["encoded"] == 3


def test_the_next_shard_is_decoded_and_its_transcripts_encoded_meanwhile(tmp_path: Path) -> None:
    next_is_ready = threading.Event()
    encoder = shard_encoder(WaitingFor(next_is_ready), dtype="float32")
    correct = encoder.text.encode

    def texts_of(texts: Sequence[str]) -> Sequence[AnyArray]:
        if "next" in texts:
            next_is_ready.set()
        return correct(texts)

    encoder.text.encode = texts_of  # type: ignore[method-assign]
    following = decoded([1.0, 1.5])
    following.texts[:] = ["next", "next"]
    with ThreadPoolExecutor(2) as threads:
        shards = [
            threads.submit(encoder.write, clips, shard, tmp_path)
            for shard, clips in enumerate([decoded([1.0, 2.0]), following])
        ]
        assert [shard.result()["encoded"] for shard in shards] == [2, 2]


def test_transcripts_of_many_lengths_come_back_to_their_clips(tmp_path: Path) -> None:
    clips = decoded([1.0] * (2 * TEXTS_PER_BATCH + 3))
    clips.texts[:] = ["word " * (number * 7 % 11) for number in range(len(clips.texts))]
    _, store = encode(tmp_path, clips, FakeEncoder())
    encoder = shard_encoder().text
    for row, text in enumerate(clips.texts):
        [alone] = encoder.encode([text])
        assert np.abs(store.text(f"u{row}") - alone).max(initial=0.0) < 1e-5


def test_transcripts_wait_for_the_memory_that_the_speech_encoder_holds(tmp_path: Path) -> None:
    speech = FakeEncoder()
    encoder = shard_encoder(speech)
    correct = encoder.text.encode
    held: list[bool] = []

    def short_of_memory(texts: Sequence[str]) -> Sequence[AnyArray]:
        held.append(encoder._speech_works.locked())
        if len(held) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return correct(texts)

    encoder.text.encode = short_of_memory  # type: ignore[method-assign]
    assert encoder.write(decoded([1.0] * 3), 0, tmp_path)["encoded"] == 3
    assert held[1:] == [True]


@pytest.mark.parametrize("seconds", [[9.0], [1.0] * 6])
def test_speech_waits_for_the_memory_that_the_text_encoder_holds(
    tmp_path: Path, seconds: list[float]
) -> None:
    """No clip is lost, and batches stay as long as they were."""
    started, failed, held = threading.Event(), threading.Event(), threading.Event()

    class Beside(FakeEncoder):
        def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
            assert started.wait(60)
            if held.is_set():
                failed.set()
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(waves)

    speech = Beside()
    encoder = shard_encoder(speech)
    correct = encoder.text.encode

    def greedy(texts: Sequence[str]) -> Sequence[AnyArray]:
        held.set()
        started.set()
        assert failed.wait(60)
        held.clear()
        return correct(texts)

    encoder.text.encode = greedy  # type: ignore[method-assign]
    summary = encoder.write(decoded(seconds), 0, tmp_path)
    assert (summary["encoded"], summary["quarantined"]) == (len(seconds), [])
    assert len(speech.batches) == 1
    assert encoder._batch_seconds == encoder.config.batch_seconds


def test_transcripts_that_need_the_memory_wait_for_the_comparison_of_bfloat16(
    tmp_path: Path,
) -> None:
    speech = FakeEncoder()
    encoder = shard_encoder(speech)
    held: list[bool] = []
    speech.verify = lambda _: held.append(encoder._speech_works.locked())  # type: ignore[method-assign]
    encoder.write(decoded([1.0]), 0, tmp_path)
    assert held == [True]


def test_a_shards_seconds_end_where_the_next_one_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = shard_encoder(FakeEncoder())
    now = [0.0]
    append = ShardWriter.append

    def slow(writer: ShardWriter, clips: Sequence[Clip]) -> list[tuple[str, str]]:
        with encoder._turn:  # as another shard has it
            now[0] += 100.0
        return append(writer, clips)

    monkeypatch.setattr(ShardWriter, "append", slow)
    monkeypatch.setattr(
        "multistill.features.worker.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    assert encoder.write(decoded([1.0]), 0, tmp_path)["encode_seconds"] == 0.0
    assert now == [100.0]
