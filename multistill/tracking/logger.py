"""What a room may tell the outside while it works.

Rooms (features, training, search, ...) take a `RunLogger` and know neither the terminal
nor MLflow. The pipeline passes one that shows progress and records to the tracking
server; tests and library users pass nothing and get `NullLogger`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol


class RunLogger(Protocol):
    """One observed piece of work: a run, a stage, a model or a trial.

    No method raises, and none blocks on the network.
    """

    def info(self, message: str) -> None:
        """One line for a person."""
        ...

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        """How far the work is; `figures` are rates and the like shown beside it."""
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Figures to record; `step` is the epoch for training curves."""
        ...

    def params(self, values: Mapping[str, object]) -> None:
        """Settings to record, few and meaningful."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts to record: fingerprints, reasons, states."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """A small file to keep with the record."""
        ...

    def register(
        self,
        name: str,
        folder: Path,
        metric: str,
        value: float,
        *,
        mode: Literal["max", "min"] = "max",
        margin: float = 0.0,
        data: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Offer a model to the registry, where there is one.

        Args:
            name: of the registered model; its best version is the `champion`.
            folder: the model's files; copied, so it may go.
            margin: by how much `value` must beat the champion's `metric`.
            data: digest of the data that the value was measured on; others are not compared.
        """
        ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        """A watched piece of work below this one.

        Args:
            name: for people, e.g. `student-audio`.
            key: unique below the parent and the same after a restart, so that an
                interrupted record is continued instead of doubled.
            kind: `stage`, `model` or `trial`.
        """
        ...

    def close(self, status: str = "FINISHED") -> None:
        """End of this piece: `FINISHED`, `FAILED` or `KILLED`."""
        ...

    @property
    def record_id(self) -> str | None:
        """The tracking server's id of this record, where there is one."""
        ...


class NullLogger:
    """A `RunLogger` that drops everything."""

    record_id: str | None = None

    def info(self, message: str) -> None: ...

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None: ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        return self

    def close(self, status: str = "FINISHED") -> None: ...
