"""How far the stage is, what failed so far, and when that is too much."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.shards import Plan
from multistill.features.store import QUARANTINE, marker_path, read_marker
from multistill.watch import Watch


class Progress:
    """Counts of what is done, shown to the watch; stops the stage at too many failures."""

    def __init__(
        self,
        plan: Plan,
        config: FeaturesConfig,
        out: Path,
        watch: Watch,
        markers: dict[int, dict[str, Any]],
    ) -> None:
        self.markers: dict[int, dict[str, Any]] = {}
        self.clips = 0
        self.audio_seconds = 0.0
        self.failed = 0
        self.rates: dict[str, float] = {}
        self._plan = plan
        self._config = config
        self._out = out
        self._watch = watch
        self._first: tuple[float, int, float] | None = None
        self._shown = 0.0
        for shard, marker in markers.items():
            self._count(shard, marker)

    def add(self, shard: int) -> None:
        marker = read_marker(self._out, shard)
        if marker is None:
            raise MultistillError(
                f"the worker's shard {marker_path(self._out, shard)} is not visible here; the "
                "workspace must be a folder that every node of the cluster shares"
            )
        self._count(shard, marker)
        self._show()
        self.check_budget()

    def _count(self, shard: int, marker: dict[str, Any]) -> None:
        self.markers[shard] = marker
        self.clips += marker["clips"]
        self.audio_seconds += marker["audio_seconds"]
        self.failed += len(marker["quarantined"])

    @property
    def quarantined(self) -> list[list[str]]:
        return [row for _, marker in sorted(self.markers.items()) for row in marker["quarantined"]]

    def _show(self) -> None:
        now = time.monotonic()
        if self._first is None:
            # Rates start with the first shard: before it the workers were only starting.
            self._first = (now, self.clips, self.audio_seconds)
        last = len(self.markers) == self._plan.shards
        if now - self._shown < 0.5 and not last:
            return
        self._shown = now
        began, clips, audio = self._first
        seconds = now - began
        done = self.audio_seconds
        if done <= audio or seconds <= 0:
            self._watch.progress(self.clips, self._plan.clips, "clips")
            return
        rate = (done - audio) / seconds
        self.rates = {
            "clips_per_second": (self.clips - clips) / seconds,
            "audio_hours_per_hour": rate,
            "real_time_factor": 1 / rate,
        }
        left = max(0.0, self._plan.seconds - done) / rate
        self._watch.progress(self.clips, self._plan.clips, "clips", **self.rates, seconds_left=left)

    def record(self, summary: dict[str, Any]) -> None:
        """Throughput and counts of the whole stage, for the tracking server."""
        figures = ("quarantined", "cut", "audio_seconds", "bytes", "worker_peak_bytes", "shards")
        self._watch.metrics(
            {
                "clips": float(summary["encoded"]),
                **{name: float(summary[name]) for name in figures},
                "encoder_real_time_factor": summary["seconds"]
                / max(summary["audio_seconds"], 1e-9),
                **self.rates,
            }
        )
        if summary["cut"]:
            self._watch.say(
                f"{summary['cut']} clips were longer than {self._config.speech.max_seconds:g} s "
                "and were cut there (features.speech.long_clips)"
            )

    def check_budget(self) -> None:
        """Stop where more clips failed than the job allows, with the reasons and a list."""
        allowed = self._config.max_quarantined * self._plan.clips
        if self.failed <= allowed:
            return
        failed = self.quarantined
        write_quarantine(self._out / QUARANTINE, failed)
        reasons = Counter(row[2].split(":")[0] for row in failed).most_common(3)
        raise MultistillError(
            f"{len(failed)} of {self._plan.clips} clips cannot be encoded, allowed are "
            f"{allowed:g} (features.max_quarantined: {self._config.max_quarantined:g}); "
            + ", ".join(f"{count} x {reason}" for reason, count in reasons)
            + f", e.g. {failed[0][1]}; see {self._out / QUARANTINE}, then mend the files or "
            "raise the limit"
        )


def write_quarantine(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """utterance_id, audio_path, reason of every clip that was left out."""
    names = ("utterance_id", "audio_path", "reason")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in names]))
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary)
    temporary.replace(path)
