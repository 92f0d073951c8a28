"""A `RunLogger` for tests that records every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Progress(NamedTuple):
    """One call of `progress`."""

    done: float
    total: float
    unit: str
    stats: dict[str, float]
    running: str = ""


class Registration(NamedTuple):
    """One call of `register`; the files are read immediately, since the folder may be temporary."""

    name: str
    metric: str
    value: float
    options: dict[str, Any]
    files: dict[str, bytes]


@dataclass(eq=False)
class RecordingLogger:
    """Records what it receives; a child of the same key is opened once and then continued.

    Attributes:
        child_kind: the kind that every child must have; None: any.
        on_event: called after every call with this logger, the name of the method and what
            was recorded; inherited by children.
        tag_calls: the argument of every call of `tags`; `logged_tags` merges them.
        child_names: name of every call of `child`, also of children that were open already.
    """

    name: str = ""
    key: str = ""
    kind: str = "run"
    record_id: str | None = None
    child_kind: str | None = None
    on_event: Callable[[RecordingLogger, str, Any], None] | None = None
    messages: list[str] = field(default_factory=list)
    progress_calls: list[Progress] = field(default_factory=list)
    metric_rows: list[tuple[int | None, dict[str, float]]] = field(default_factory=list)
    logged_params: dict[str, object] = field(default_factory=dict)
    tag_calls: list[dict[str, str]] = field(default_factory=list)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    children: dict[str, RecordingLogger] = field(default_factory=dict)
    child_names: list[str] = field(default_factory=list)
    status: str = ""

    @property
    def steps(self) -> list[int]:
        """The step of every logged row that has one, in order."""
        return [step for step, _ in self.metric_rows if step is not None]

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for _, row in self.metric_rows for name, value in row.items()}

    @property
    def logged_tags(self) -> dict[str, str]:
        return {name: value for tags in self.tag_calls for name, value in tags.items()}

    def info(self, message: str) -> None:
        self.messages.append(message)
        self._notify("info", message)

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        self.progress_calls.append(Progress(done, total, unit, stats, running))
        self._notify("progress", self.progress_calls[-1])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.metric_rows.append((step, dict(values)))
        self._notify("metrics", self.metric_rows[-1])

    def params(self, values: Mapping[str, object]) -> None:
        self.logged_params.update(values)
        self._notify("params", dict(values))

    def tags(self, values: Mapping[str, str]) -> None:
        self.tag_calls.append(dict(values))
        self._notify("tags", self.tag_calls[-1])

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.artifacts.append((path, folder))
        self._notify("artifact", self.artifacts[-1])

    def register(self, name: str, folder: Path, metric: str, value: float, **options: Any) -> None:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.registrations.append(Registration(name, metric, value, options, files))
        self._notify("register", self.registrations[-1])

    def child(self, name: str, key: str, kind: str) -> RecordingLogger:
        assert self.child_kind in (None, kind)
        self.child_names.append(name)
        if key not in self.children:
            self.children[key] = RecordingLogger(
                name, key, kind, record_id=f"record-{key}", on_event=self.on_event
            )
        self._notify("child", self.children[key])
        return self.children[key]

    def close(self, status: str = "FINISHED") -> None:
        self.status = status
        self._notify("close", status)

    def _notify(self, method: str, recorded: Any) -> None:
        if self.on_event is not None:
            self.on_event(self, method, recorded)
