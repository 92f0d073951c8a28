"""The progress line of the features stage."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from multistill.config import FeaturesConfig
from multistill.features.progress import Progress, Snapshot, rates
from multistill.features.shards import ShardPlan
from multistill.features.store import SHARDS
from multistill.features.store_writer import marker_path
from multistill.tracking.console import ConsoleLogger, ProgressDisplay


def test_rates_measure_the_work_between_two_snapshots() -> None:
    before, now = Snapshot(100.0, 10, 36.0), Snapshot(120.0, 50, 7236.0)
    assert rates(before, now) == {
        "clips_per_second": 2.0,
        "audio_hours_per_hour": 360.0,
        "real_time_factor": 20 / 7200,
    }
    assert rates(now, now) == {}


def test_the_progress_line_shows_clips_rates_and_the_remaining_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ShardPlan(tmp_path / "plan.arrow", shards=10, clips=100, seconds=10_000.0)
    (tmp_path / SHARDS).mkdir()
    clock = iter([0.0, 5.0, 6.0])
    time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("multistill.features.progress.time", time)
    output = io.StringIO()
    display = ProgressDisplay(Console(file=output, width=200))
    monkeypatch.setattr("multistill.tracking.console.SECONDS_BETWEEN_LINES", 0.0)
    progress = Progress(plan, FeaturesConfig(), tmp_path, ConsoleLogger(display, "job"), {})
    for shard in range(2):
        file = tmp_path / SHARDS / f"{shard}.arrow"
        file.write_bytes(b"")
        marker = {"file": file.name, "bytes": 0, "clips": 10, "audio_seconds": 1e3}
        marker_path(tmp_path, shard).write_text(json.dumps({**marker, "quarantined": []}))
        progress.add(shard)
    # Rates start with the first shard; the second one took a second for 1,000 s of audio.
    line = output.getvalue().splitlines()[-1]
    assert "20/100 clips" in line
    assert "clips per second 10 " in line
    assert "audio hours per hour 1,000 " in line
    assert line.endswith("0:00:08 left")
