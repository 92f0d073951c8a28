"""Decoding, normalising, windows, shard plans, pool sizes and the watchdog."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.features_case import tone, write_corpus, write_manifest_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.audio.digests import digest_of
from multistill.audio.reading import opened
from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features import waves
from multistill.features.decode import UnusableClipError, Wave, decode
from multistill.features.shards import plan_shards, read_shard
from multistill.features.sizing import size_pools
from multistill.features.watchdog import watch
from multistill.features.waves import DecodedShard, decode_shard, from_table, to_table
from multistill.features.windows import join_windows, window_spans
from multistill.features.worker import Window, batch_windows


def read(path: Path, max_seconds: float = 30.0, long_clips: str = "cut") -> Wave:
    return decode(str(path), max_seconds=max_seconds, long_clips=long_clips)


def test_a_decoded_wave_is_mono_16_khz_with_zero_mean_and_unit_variance(tmp_path: Path) -> None:
    for rate in (8_000, 16_000, 22_050, 44_100, 48_000):
        left = tone(1.5, 440, rate) + 0.2
        soundfile.write(tmp_path / "a.wav", np.stack([left, left], axis=1), rate)
        wave = read(tmp_path / "a.wav").samples
        assert wave.dtype == np.float32
        assert len(wave) == 24_000
        assert abs(wave.mean()) < 1e-4
        assert abs(wave.std() - 1) < 1e-3
        peak = np.abs(np.fft.rfft(wave)).argmax() / 1.5
        assert abs(peak - 440) < 1


def test_both_channels_are_mixed(tmp_path: Path) -> None:
    left, right = tone(1.0, 300), tone(1.0, 1_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000)
    spectrum = np.abs(np.fft.rfft(read(tmp_path / "a.wav").samples))
    assert sorted(np.argsort(spectrum)[-2:].tolist()) == [300, 1_000]


def test_a_silent_clip_stays_finite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    assert not read(tmp_path / "a.wav").samples.any()


def test_an_unusable_clip_raises_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF" + b"\0" * 40)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan, np.float32), 16_000, "FLOAT")
    soundfile.write(tmp_path / "long.wav", tone(3.0), 16_000)
    for name, reason in (
        ("corrupt.wav", "not audio"),
        ("gone.wav", "cannot be opened: No such file"),
        ("empty.wav", "empty"),
        ("nan.wav", "not finite"),
        ("long.wav", "too long: 3.0 s, the limit is 2 s"),
    ):
        with pytest.raises(UnusableClipError, match=reason):
            read(tmp_path / name, 2.0, "quarantine")


def one_shard(folder: Path, rows: list[dict[str, Any]]) -> DecodedShard:
    manifest = write_manifest_rows(folder / "manifest.parquet", rows)
    (folder / "plan").mkdir()
    plan = plan_shards(manifest, 1e6, folder / "plan")
    assert plan.shards == 1
    return decode_shard(plan.path, 0, FeaturesConfig())


def test_whatever_one_clip_raises_while_it_is_decoded_is_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ValueError("no"), IndexError(), TypeError("t"), OSError(5, "Input/output error")]
    rows = write_corpus(tmp_path / "wav", [0.5] * (len(errors) + 1))
    by_path = dict(zip((row["audio_path"] for row in rows), errors, strict=False))

    def choosy(path: str, **keys: Any) -> Wave:
        if path in by_path:
            raise by_path[path]
        return decode(path, **keys)

    monkeypatch.setattr(waves, "decode", choosy)
    decoded = one_shard(tmp_path, rows)
    assert list(decoded.waves) == [len(errors)]
    for row, error in enumerate(errors):
        assert decoded.reasons[row].startswith(f"cannot be decoded: {type(error).__name__}: ")


@pytest.mark.parametrize("error", [MemoryError, ImportError])
def test_a_lack_of_memory_and_a_broken_installation_are_nobodys_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def failing(path: str, **keys: Any) -> Wave:
        raise error

    monkeypatch.setattr(waves, "decode", failing)
    with pytest.raises(error):
        one_shard(tmp_path, write_corpus(tmp_path / "wav", [0.5]))


def test_a_file_that_changed_after_it_was_prepared_is_not_encoded(tmp_path: Path) -> None:
    rows = write_corpus(tmp_path / "wav", [0.5, 0.5])
    for row in rows:
        with opened(row["audio_path"]) as handle:
            row["audio_digest"] = digest_of(handle)
    with Path(rows[1]["audio_path"]).open("r+b") as stream:
        stream.seek(9_000)
        stream.write(bytes(2_000))
    decoded = one_shard(tmp_path, rows)
    assert list(decoded.waves) == [0]
    assert decoded.reasons[1].startswith("changed since the prepare stage read it: ")


def test_channels_that_cancel_each_other_give_a_silent_clip(tmp_path: Path) -> None:
    left = tone(1.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), 16_000)
    assert read(tmp_path / "a.wav").silent
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.5), 16_000)
    assert read(tmp_path / "a.wav").silent
    soundfile.write(tmp_path / "a.wav", left, 16_000)
    assert not read(tmp_path / "a.wav").silent


def test_a_long_clip_is_cut_and_marked_or_read_completely_for_windows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(3.0), 16_000)
    cut = read(tmp_path / "a.wav", 2.0, "cut")
    assert cut.cut
    assert len(cut.samples) == 32_000
    complete = read(tmp_path / "a.wav", 2.0, "window")
    assert not complete.cut
    assert len(complete.samples) == 48_000


@settings(max_examples=200, deadline=None)
@given(st.integers(400, 400_000), st.floats(0.6, 12), st.floats(0, 0.9))
def test_windows_give_exactly_the_states_of_the_whole_clip(
    samples: int, window: float, share: float
) -> None:
    """Holds exactly for an encoder without context beyond its receptive field."""
    wave = np.random.default_rng(samples).normal(size=samples).astype(np.float32)

    def states(part: np.ndarray) -> np.ndarray:
        frames = (len(part) - 400) // 320 + 1
        index = np.arange(frames) * 320
        return np.stack([part[index], part[index + 399]], axis=1)

    spans = window_spans(samples, 320, 400, window, window * share)
    assert all(stop - start >= 400 for start, stop in spans)
    assert all(stop - start <= window * 16_000 + 800 for start, stop in spans)
    joined = join_windows([states(wave[start:stop]) for start, stop in spans], spans, 320)
    assert np.array_equal(joined, states(wave))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(400, 90_000) | st.sampled_from([400, 16_000]), min_size=1, max_size=60),
    st.floats(0.5, 20),
    st.booleans(),
)
def test_batches_stay_within_their_seconds_including_padding(
    lengths: list[int], limit: float, equal: bool
) -> None:
    windows = [Window(row, 0, np.zeros(n, np.float32)) for row, n in enumerate(lengths)]
    batches = list(batch_windows(windows, limit, equal))
    assert sorted(window.row for batch in batches for window in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [len(window.samples) for window in batch]
        assert len(batch) == 1 or max(sizes) * len(batch) <= limit * 16_000
        assert not equal or len(set(sizes)) == 1


def test_a_decoded_shard_is_unchanged_by_conversion_to_arrow_and_back() -> None:
    clips = {0: Wave(tone(0.1), False, True), 2: Wave(tone(0.2), True)}
    decoded = DecodedShard(["a", "b", "c"], ["x", "y", "z"], ["", "나", "t"], clips, {1: "empty"})
    back = from_table(to_table(decoded, 7))
    assert (back.ids, back.paths, back.texts) == (decoded.ids, decoded.paths, decoded.texts)
    assert back.reasons == decoded.reasons
    assert back.waves.keys() == clips.keys()
    for row, wave in clips.items():
        assert np.array_equal(back.waves[row].samples, wave.samples)
        assert (back.waves[row].cut, back.waves[row].silent) == (wave.cut, wave.silent)
    failed = from_table(to_table(DecodedShard(["a"], ["x"], [""], {}, {0: "empty"}), 1))
    assert failed.waves == {}
    assert failed.reasons == {0: "empty"}


def test_shards_hold_every_clip_once_sorted_by_length_and_are_near_the_target_size(
    tmp_path: Path,
) -> None:
    seconds = np.random.default_rng(0).uniform(0.5, 9, 3_000).round(3).tolist()
    rows = [
        {"utterance_id": f"u{i}", "audio_path": "a.wav", "text": "", "duration_s": length}
        for i, length in enumerate(seconds)
    ]
    manifest = write_manifest_rows(tmp_path / "manifest.parquet", rows)
    plan = plan_shards(manifest, 300, tmp_path)
    shards = [read_shard(plan.path, shard) for shard in range(plan.shards)]
    clips = [clip for shard in shards for clip in shard.to_pylist()]
    assert sorted(clip["utterance_id"] for clip in clips) == sorted(f"u{i}" for i in range(3_000))
    lengths = [clip["duration_s"] for clip in clips]
    assert lengths == sorted(lengths)
    totals = [sum(shard.column("duration_s").to_pylist()) for shard in shards]
    assert all(280 < total < 320 for total in totals[:-1])
    assert plan.seconds == pytest.approx(sum(seconds))


def test_a_plan_is_replaced_when_the_manifest_changes_but_not_when_the_shard_size_does(
    tmp_path: Path,
) -> None:
    rows = write_corpus(tmp_path / "wav", [])
    rows = [
        {"utterance_id": f"u{i}", "audio_path": "a.wav", "text": "x", "duration_s": 10.0}
        for i in range(200)
    ]
    manifest = write_manifest_rows(tmp_path / "m.parquet", rows)
    out = tmp_path / "out"
    out.mkdir()
    first = plan_shards(manifest, 100, out)
    (out / "work").mkdir()
    assert plan_shards(manifest, 400, out) == first
    assert (out / "work").exists()
    # The same rows in other row groups are the same manifest.
    pq.write_table(pq.read_table(manifest), manifest, row_group_size=7)
    assert plan_shards(manifest, 100, out) == first
    rows[0]["text"] = "other"
    write_manifest_rows(manifest, rows)
    plan_shards(manifest, 100, out)
    assert not (out / "work").exists()


def test_pool_sizes_follow_the_resources_of_the_cluster() -> None:
    def sized(resources: dict[str, float], **keys: object) -> tuple[int, float, int]:
        config = FeaturesConfig.model_validate({"speech": {"model": "x/y"}, **keys})
        pools = size_pools(config, resources, shards=1_000, seconds=1e6)
        return pools.encoders, pools.gpus_per_encoder, pools.decoders

    assert sized({"CPU": 8}) == (8, 0, 0)
    assert sized({"CPU": 64, "GPU": 4}) == (4, 1, 16)
    assert sized({"CPU": 6, "GPU": 4}) == (4, 1, 2)
    assert sized({"CPU": 8, "GPU": 2}, gpus_per_encoder=0.5) == (4, 0.5, 4)
    assert sized({"CPU": 8}, encoders=3, decoders=2) == (3, 0, 2)


def test_log_mel_on_a_small_corpus_gets_one_process_and_no_gpu() -> None:
    config = FeaturesConfig()
    assert size_pools(config, {"CPU": 16}, shards=16, seconds=1_000).encoders == 1
    assert size_pools(config, {"CPU": 16, "GPU": 1}, shards=16, seconds=1_000).gpus_per_encoder == 0


def test_only_a_lasting_shortage_of_resources_ends_the_stage() -> None:
    def slow() -> Iterator[int]:
        yield 1
        time.sleep(0.3)
        yield 2
        time.sleep(30)

    shortages = iter([None, "gone", None, "gone", None])
    items = watch(slow(), lambda: next(shortages, "gone: 1 GPU"), grace_s=0.2, poll_s=0.05)
    assert next(items) == 1
    assert next(items) == 2
    with pytest.raises(MultistillError, match=r"gone: 1 GPU; finished shards are kept"):
        next(items)


def test_a_slow_shard_without_a_shortage_is_waited_for() -> None:
    def slow() -> Iterator[int]:
        time.sleep(0.4)
        yield 1

    assert list(watch(slow(), lambda: None, grace_s=0.1, poll_s=0.02)) == [1]


def test_an_error_of_a_worker_is_raised_by_the_iterator() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("from a worker")

    with pytest.raises(ValueError, match="from a worker"):
        list(watch(failing(), lambda: None))


def test_a_request_beyond_the_cluster_is_refused_immediately() -> None:
    config = FeaturesConfig.model_validate({"encoders": 3, "gpus_per_encoder": 1})
    with pytest.raises(MultistillError, match=r"3 encoders with 1 GPU each need 3 GPUs.*has 2"):
        size_pools(config, {"CPU": 9, "GPU": 2}, shards=10, seconds=1e4)
    config = FeaturesConfig.model_validate({"encoders": 5})
    with pytest.raises(MultistillError, match=r"5 CPUs and the cluster has 2"):
        size_pools(config, {"CPU": 2}, shards=10, seconds=1e4)
