"""The features stage on a real Ray: no clip is lost or duplicated, whatever is killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers import without_ray
from helpers.features_case import tone, write_corpus, write_manifest_rows
from helpers.features_killed import (
    CONFIG,
    SHARDS,
    actors,
    assert_complete,
    descendants,
    markers,
    wait_for,
    write_manifest,
)
from helpers.paths import TESTS
from helpers.recording_logger import RecordingLogger

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.actors import EncodeShard
from multistill.features.encode import encode
from multistill.features.progress import Progress
from multistill.features.shards import ShardPlan, plan_shards
from multistill.features.store import FeatureStore
from multistill.tracking.logger import NullLogger
from multistill.workspace import read_json

pytestmark = pytest.mark.ray


def config(**keys: object) -> FeaturesConfig:
    return FeaturesConfig.model_validate({"shard_seconds": 6.0, **keys})


def shard_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}


def test_failed_clips_are_quarantined_and_a_rerun_encodes_only_what_is_missing(
    tmp_path: Path, ray_session: None
) -> None:
    rows = write_corpus(tmp_path / "wav", [1.0 + i % 7 / 3 for i in range(24)], ["a b", "", "나"])
    bad = {3: b"", 8: b"not audio", 15: None}
    for number, content in bad.items():
        path = Path(rows[number]["audio_path"])
        if content is None:
            soundfile.write(path, tone(0.02), 16_000)
        else:
            path.write_bytes(content)
    manifest = write_manifest_rows(tmp_path / "manifest.parquet", rows)
    out = tmp_path / "store"

    logger = RecordingLogger()
    summary = encode(manifest, config(max_quarantined=0.2), out, logger)
    quarantine = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert {row["utterance_id"]: row["reason"].split(":")[0] for row in quarantine} == {
        "c/0003": "empty",
        "c/0008": "not audio",
        "c/0015": "too short",
    }
    store = FeatureStore(out)
    store.verify()
    assert len(store) + len(quarantine) == summary["clips"] == 24
    assert logger.progress_calls[-1][:2] == (24, 24)
    assert logger.logged_metrics["clips"] == 21
    assert logger.logged_metrics["quarantined"] == 3
    assert logger.logged_metrics["quarantined_too_short"] == 1
    assert logger.logged_metrics["quarantined_not_audio"] == 1
    rates = {"clips_per_second", "audio_hours_per_hour", "real_time_factor"}
    assert rates <= logger.logged_metrics.keys()
    stats = {name for call in logger.progress_calls for name in call.stats}
    assert stats == rates | {"seconds_left"}
    assert summary["speech"]["trained"] is None
    assert summary["text"]["trained"] is False
    before = {name: store.audio(name).copy() for name in store.ids}

    # One marker is deleted, one shard truncated, one clip fixed; and under the lower limit three
    # failures are too many, so shards with failed clips are encoded again.
    times = shard_times(out)
    clean = [name for name in sorted(times) if not read_json(out / "shards" / name)["quarantined"]]
    lost, cut = clean[:2]
    (out / "shards" / lost).unlink()
    [file] = (out / "shards").glob(cut.replace(".json", "-*.arrow"))
    file.write_bytes(file.read_bytes()[:-10])
    soundfile.write(rows[8]["audio_path"], tone(1.0), 16_000)
    assert encode(manifest, config(max_quarantined=0.1), out)["quarantined"] == 2
    again = FeatureStore(out)
    again.verify()
    assert len(again) == 22
    assert all((again.audio(name) == states).all() for name, states in before.items())
    redone = {name for name, when in shard_times(out).items() if times[name] != when}
    assert redone == {lost, cut} | (set(times) - set(clean))


def test_too_many_failures_stop_the_stage_with_their_reasons(tmp_path: Path) -> None:
    plan = ShardPlan(tmp_path / "plan.arrow", shards=4, clips=100, seconds=100.0)
    failed = [[f"u{i}", f"/wav/{i}.wav", "empty: no sample"] for i in range(6)]
    marker = {"clips": 25, "audio_seconds": 19.0, "quarantined": failed}
    tolerant = Progress(plan, config(max_quarantined=0.06), tmp_path, NullLogger(), {0: marker})
    tolerant.check_failures()
    progress = Progress(plan, config(max_quarantined=0.05), tmp_path, NullLogger(), {0: marker})
    with pytest.raises(
        MultistillError, match=r"6 of 100 clips.*the limit is 5 .*6 x empty, e\.g\. /wav/0\.wav"
    ):
        progress.check_failures()
    assert pq.read_table(tmp_path / "quarantine.parquet").num_rows == 6


def test_states_do_not_depend_on_the_number_of_actors_and_decoders(
    tmp_path: Path, ray_session: None
) -> None:
    rows = write_corpus(tmp_path / "wav", [0.5 + i % 5 for i in range(20)])
    manifest = write_manifest_rows(tmp_path / "manifest.parquet", rows)
    base = {"speech": {"model": "untrained-wav2vec2"}, "dtype": "float32"}
    stores = []
    for name, run, keys in (
        ("one", without_ray.encode, {"batch_seconds": 1}),
        ("many", encode, {"encoders": 2, "decoders": 2, "shard_seconds": 100.0}),
    ):
        out = tmp_path / name
        out.mkdir()
        run(manifest, config(**base, **keys), out)
        stores.append(FeatureStore(out))
    one, many = stores
    assert one.ids == many.ids
    for name in one.ids:
        assert np.abs(one.audio(name) - many.audio(name)).max() < 1e-5
        assert np.abs(one.text(name) - many.text(name)).max() < 1e-5


def test_an_encoder_that_cannot_be_loaded_stops_the_stage_with_advice(
    tmp_path: Path, ray_session: None
) -> None:
    rows = write_corpus(tmp_path / "wav", [1.0])
    manifest = write_manifest_rows(tmp_path / "manifest.parquet", rows)
    for speech, message in (
        ({"model": "nobody/nothing"}, r"features\.speech\.model: `nobody/nothing`.*local folder"),
        ({"model": "untrained-wav2vec2", "layers": [9]}, r"features\.speech\.layers: 9 is not"),
    ):
        with pytest.raises(MultistillError, match=message):
            encode(manifest, config(speech=speech), tmp_path / "out")


@pytest.mark.parametrize("function", ["_HashingStream.write", "os.fsync", "write_json"])
def test_a_full_disk_on_a_worker_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    manifest = write_manifest_rows(
        tmp_path / "manifest.parquet", write_corpus(tmp_path / "wav", [1.0])
    )
    out = tmp_path / "out"
    out.mkdir()
    plan = plan_shards(manifest, 60, out)
    (out / "shards").mkdir()
    weights = {"speech": None, "text": None}
    worker = EncodeShard(config().model_dump(), weights, str(plan.path), str(out), False, 1)
    monkeypatch.setattr(f"multistill.features.store_writer.{function}", full)
    [result] = worker(pa.table({"shard": [0]})).to_pylist()
    assert "is full; free some space" in result["error"]
    assert markers(out) == 0
    monkeypatch.undo()
    assert worker(pa.table({"shard": [0]})).to_pylist() == [{"shard": 0, "error": None}]


@contextmanager
def started(manifest: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Run features_killed.py in a process; its descendants are killed at the end."""
    script = TESTS / "helpers" / "features_killed.py"
    # Ray creates Unix sockets below it, whose paths must be short.
    home = tempfile.mkdtemp(prefix="mst-", dir="/tmp")
    process = subprocess.Popen(
        [sys.executable, str(script), str(manifest), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_raylet_start_wait_time_s": "120",
            # Also isolates the file in which Ray looks up the address `auto`.
            "RAY_TMPDIR": home,
        },
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [process.pid, *descendants(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.timeout(900)
def test_a_killed_driver_costs_only_the_shards_in_progress(
    tmp_path: Path, ray_session: None
) -> None:
    manifest, out = write_manifest(tmp_path), tmp_path / "store"
    out.mkdir()
    with started(manifest, out) as process:
        wait_for(5, out)
        below, encoders = descendants(process.pid), actors(process.pid)
        process.send_signal(signal.SIGKILL)
        try:
            # The encoders exit after the driver; until then they can still finish a shard.
            deadline = time.monotonic() + 60
            while any(Path(f"/proc/{pid}").exists() for pid in encoders):
                assert time.monotonic() < deadline, "an orphan could write during the next run"
                time.sleep(0.05)
        finally:
            # Ray's agents retry for a minute to reach the server that was killed.
            for pid in below:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    done = shard_times(out)
    assert encoders
    assert 5 <= len(done) < SHARDS
    time.sleep(0.01)
    encode(manifest, FeaturesConfig.model_validate(CONFIG), out)
    after = shard_times(out)
    assert len(after) == SHARDS
    assert {name: after[name] for name in done} == done
    assert_complete(out)
