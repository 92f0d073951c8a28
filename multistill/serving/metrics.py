"""Prometheus metrics of a server."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one process, in a registry of their own.

    Attributes:
        requests: by path and status; paths that do not exist are `other`.
        refused: by reason, as in the answers.
        seconds: of requests, by path.
        stages: seconds of decode, speech, text and head.
        predictions: in progress and waiting.
        streams: that are open.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "multistill", "registry": self.registry}
        self.requests = Counter("requests", "Requests", ["path", "status"], **options)
        self.refused = Counter("refused", "Requests without an answer", ["reason"], **options)
        self.seconds = Histogram(
            "request_seconds", "Time of a request", ["path"], buckets=SECONDS, **options
        )
        self.stages = Histogram(
            "stage_seconds", "Time of a stage", ["stage"], buckets=SECONDS, **options
        )
        self.predictions = Gauge("predictions_in_progress", "Predictions in progress", **options)
        self.streams = Gauge("streams_open", "Streams in progress", **options)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def observe_stages(self, milliseconds: dict[str, float]) -> None:
        for stage, value in milliseconds.items():
            if stage != "total":
                self.stages.labels(stage).observe(value / 1000)
