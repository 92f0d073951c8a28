"""The logging interface of all packages: messages, progress, metrics and artifacts of a run.

Packages (features, training, search, ...) take a `RunLogger` and know neither the terminal
nor MLflow. The pipeline passes one that shows progress and records to the tracking server;
tests and library users pass nothing and get a `NullLogger`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol


class RunLogger(Protocol):
    """Logger of one run: the whole job, a stage, a model or a trial.

    No method raises, and none blocks on the network.
    """

    def info(self, message: str) -> None:
        """Print one human-readable line."""
        ...

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        """Report progress.

        Args:
            running: what runs at the same time, e.g. `audio 5/15, text 7/15`.
            stats: shown with it, e.g. rates and `seconds_left`.
        """
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; `step` is the epoch for training curves."""
        ...

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, few and meaningful."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags: fingerprints, reasons, states."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a small file below the artifact path `folder`."""
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
        """Register a model version, where there is a registry.

        Args:
            name: of the registered model; its best version gets the alias `champion`.
            folder: the model's files; they are copied, so the folder can be deleted afterwards.
            margin: by how much `value` must beat the champion's `metric`.
            data: digest of the data that `value` was measured on; values measured on different
                data are not compared.
        """
        ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        """Open a run nested below this one.

        Args:
            name: human-readable, e.g. `student-audio`.
            key: unique below the parent and the same after a restart, so that an
                interrupted run is continued instead of duplicated.
            kind: `stage`, `fold`, `model` or `trial`.
        """
        ...

    def close(self, status: str = "FINISHED") -> None:
        """End the run as `FINISHED`, `FAILED` or `KILLED`."""
        ...

    @property
    def record_id(self) -> str | None:
        """The tracking server's id of this run, where there is one."""
        ...


class NullLogger:
    """A `RunLogger` that drops everything."""

    record_id: str | None = None

    def info(self, message: str) -> None: ...

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None: ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        return self

    def close(self, status: str = "FINISHED") -> None: ...
