"""How far the stage is, what failed so far, and when that is too much."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.shards import ShardPlan
from multistill.features.store import QUARANTINE, marker_path, read_marker
from multistill.tracking.logger import RunLogger
from multistill.workspace import atomic_path


class State(NamedTuple):
    """What was done at a moment."""

    time: float
    clips: int
    audio_seconds: float


def rates(before: State, now: State) -> dict[str, float]:
    """Throughput between two moments; nothing where nothing was done."""
    seconds = now.time - before.time
    audio = now.audio_seconds - before.audio_seconds
    if seconds <= 0 or audio <= 0:
        return {}
    return {
        "clips_per_second": (now.clips - before.clips) / seconds,
        "audio_hours_per_hour": audio / seconds,
        "real_time_factor": seconds / audio,
    }


def _kind(reason: str) -> str:
    """`too short` of `too short: 320 samples ...`."""
    return re.split("[:;]", reason, maxsplit=1)[0]


class Progress:
    """Counts of what is done, shown to the logger; stops the stage at too many failures."""

    def __init__(
        self,
        plan: ShardPlan,
        config: FeaturesConfig,
        out: Path,
        logger: RunLogger,
        markers: dict[int, dict[str, Any]],
    ) -> None:
        self.markers: dict[int, dict[str, Any]] = {}
        self.clips = 0
        self.audio_seconds = 0.0
        self.failed = 0
        self._plan = plan
        self._config = config
        self._out = out
        self._logger = logger
        self._shown = 0.0
        for shard, marker in markers.items():
            self._count(shard, marker)
        self._start = self._state()
        self._first: State | None = None

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

    def _state(self) -> State:
        return State(time.monotonic(), self.clips, self.audio_seconds)

    def _show(self) -> None:
        now = self._state()
        # Rates start with the first shard: before it the workers were only starting.
        self._first = self._first or now
        last = len(self.markers) == self._plan.shards
        if now.time - self._shown < 0.5 and not last:
            return
        self._shown = now.time
        figures = rates(self._first, now)
        if figures:
            left = max(0.0, self._plan.seconds - now.audio_seconds)
            figures["seconds_left"] = left * figures["real_time_factor"]
        self._logger.progress(self.clips, self._plan.clips, "clips", **figures)

    def record(self, summary: dict[str, Any]) -> None:
        """Throughput and counts of the whole stage, for the tracking server."""
        kinds = Counter(_kind(reason) for _, _, reason in self.quarantined)
        figures = ("quarantined", "cut", "audio_seconds", "bytes", "worker_peak_bytes", "shards")
        self._logger.metrics(
            {
                "clips": float(summary["encoded"]),
                **{name: float(summary[name]) for name in figures},
                "encoder_real_time_factor": summary["seconds"]
                / max(summary["audio_seconds"], 1e-9),
                **{f"quarantined_{kind.replace(' ', '_')}": n for kind, n in kinds.items()},
                # Of this attempt, with the start of its workers.
                **rates(self._start, self._state()),
            }
        )
        if summary["cut"]:
            self._logger.info(
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
        reasons = Counter(_kind(reason) for _, _, reason in failed).most_common(3)
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
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
