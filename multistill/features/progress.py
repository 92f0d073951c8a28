"""Progress of the features stage, its failed clips, and the limit on them."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.quarantine import kind_of, too_many_failed, write_quarantine
from multistill.features.shards import ShardPlan
from multistill.features.store import QUARANTINE
from multistill.features.store_writer import marker_path, read_marker
from multistill.tracking.logger import RunLogger


class Snapshot(NamedTuple):
    """Work done up to a point in time."""

    time: float
    clips: int
    audio_seconds: float


def rates(before: Snapshot, now: Snapshot) -> dict[str, float]:
    """Throughput between two snapshots; empty if nothing was done in between."""
    seconds = now.time - before.time
    audio = now.audio_seconds - before.audio_seconds
    if seconds <= 0 or audio <= 0:
        return {}
    return {
        "clips_per_second": (now.clips - before.clips) / seconds,
        "audio_hours_per_hour": audio / seconds,
        "real_time_factor": seconds / audio,
    }


class Progress:
    """Counts finished shards, reports to the logger and stops the stage at too many failures.

    Attributes:
        markers: done marker of each finished shard.
        failed: number of quarantined clips so far.
    """

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
        self._reported = 0.0
        for shard, marker in markers.items():
            self._count(shard, marker)
        self._start = self._snapshot()
        self._first: Snapshot | None = None

    def add(self, shard: int) -> None:
        """Count a shard that a worker has finished.

        Raises:
            MultistillError: the shard is not visible on this node, or too many clips failed.
        """
        marker = read_marker(self._out, shard)
        if marker is None:
            raise MultistillError(
                f"the shard {marker_path(self._out, shard)} of a worker is not visible on the "
                "driver's node; the workspace must be a folder that all nodes share"
            )
        self._count(shard, marker)
        self._report()
        self.check_failures()

    def _count(self, shard: int, marker: dict[str, Any]) -> None:
        self.markers[shard] = marker
        self.clips += marker["clips"]
        self.audio_seconds += marker["audio_seconds"]
        self.failed += len(marker["quarantined"])

    @property
    def quarantined(self) -> list[list[str]]:
        """utterance_id, audio_path and reason of every failed clip, in the order of shards."""
        return [row for _, marker in sorted(self.markers.items()) for row in marker["quarantined"]]

    def _snapshot(self) -> Snapshot:
        return Snapshot(time.monotonic(), self.clips, self.audio_seconds)

    def _report(self) -> None:
        now = self._snapshot()
        # Rates are measured from the first shard on: before it, the workers were starting.
        self._first = self._first or now
        last = len(self.markers) == self._plan.shards
        if now.time - self._reported < 0.5 and not last:
            return
        self._reported = now.time
        figures = rates(self._first, now)
        if figures:
            left = max(0.0, self._plan.seconds - now.audio_seconds)
            figures["seconds_left"] = left * figures["real_time_factor"]
        self._logger.progress(self.clips, self._plan.clips, "clips", running="", **figures)

    def record(self, summary: dict[str, Any]) -> None:
        """Log throughput and counts of the whole stage as metrics."""
        kinds = Counter(kind_of(reason) for _, _, reason in self.quarantined)
        figures = (
            "quarantined",
            "cut",
            "silent",
            "audio_seconds",
            "bytes",
            "worker_peak_bytes",
            "shards",
        )
        self._logger.metrics(
            {
                "clips": float(summary["encoded"]),
                "cut_texts": float(sum(summary["cut_texts"].values())),
                **{name: float(summary[name]) for name in figures},
                "encoder_real_time_factor": summary["seconds"]
                / max(summary["audio_seconds"], 1e-9),
                **{f"quarantined_{kind.replace(' ', '_')}": n for kind, n in kinds.items()},
                # Of this attempt, including the start of its workers.
                **rates(self._start, self._snapshot()),
            }
        )
        if summary["silent"]:
            markers = [marker for _, marker in sorted(self.markers.items())]
            names = [name for marker in markers for name in marker["silent_examples"]][:3]
            self._logger.info(
                f"{summary['silent']} clips are silent once their channels are mixed, e.g. "
                f"{', '.join(names)}; their states say nothing"
            )
        if summary["cut"]:
            self._logger.info(
                f"{summary['cut']} clips were longer than {self._config.speech.max_seconds:g} s "
                "and were cut to that length (features.speech.long_clips)"
            )
        if summary["cut_texts"]:
            by_corpus = ", ".join(f"{name}: {n}" for name, n in summary["cut_texts"].items())
            self._logger.info(
                f"{sum(summary['cut_texts'].values())} transcripts were longer than the text "
                f"encoder reads and were cut ({by_corpus}; features.text.max_tokens: "
                f"{self._config.text.max_tokens})"
            )

    def check_failures(self) -> None:
        """Raise if more clips failed than the job allows, after writing the quarantine table.

        Raises:
            MultistillError: with the most frequent reasons.
        """
        if self.failed <= self._config.max_quarantined * self._plan.clips:
            return
        failed = self.quarantined
        write_quarantine(self._out / QUARANTINE, failed)
        raise MultistillError(
            too_many_failed(self._config, self._plan.clips, failed, self._out / QUARANTINE)
        )
