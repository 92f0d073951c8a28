"""Progress on standard error, so that standard output holds only results.

On a terminal one live line is updated; elsewhere (a log file, CI, a Ray job) a line is
printed when something changes, at most every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from threading import RLock
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from multistill.tracking.logger import RunLogger

SECONDS_BETWEEN_LINES = 5.0


def stderr() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class ProgressDisplay:
    """Writes messages and the live progress line; shared by all loggers of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self._lock = RLock()
        self._live: Live | None = None
        self._last_printed = 0.0

    def print(self, text: str, style: str = "") -> None:
        with self._lock:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def update(self, text: str) -> None:
        """Replace the live line; without a terminal, print a line every few seconds."""
        with self._lock:
            if self.console.is_terminal:
                if self._live is None:
                    self._live = Live(console=self.console, transient=True, auto_refresh=False)
                    self._live.start()
                self._live.update(Text(f"  {text}", style="dim", overflow="ellipsis"), refresh=True)
            elif time.monotonic() - self._last_printed >= SECONDS_BETWEEN_LINES:
                self._last_printed = time.monotonic()
                self.print(f"  {text}")

    def clear(self) -> None:
        """Remove the live line, e.g. at the end of a stage."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None


def format_stat(name: str, value: float) -> str:
    """Format one progress value: `clips per second 1,234`, `1:02:03 left`."""
    if name == "seconds_left":
        return f"{timedelta(seconds=round(value))} left"
    return f"{name.replace('_', ' ')} {f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'}"


class ConsoleLogger:
    """A `RunLogger` that only prints."""

    record_id: str | None = None

    def __init__(self, display: ProgressDisplay, name: str) -> None:
        self.display = display
        self.name = name

    def info(self, message: str) -> None:
        self.display.print(f"  {message}")

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        percent = f"{100 * done / total:3.0f} %" if total else ""
        shown = "  ".join(format_stat(name, value) for name, value in stats.items())
        parts = [f"{self.name}  {done:g}/{total:g} {unit} {percent}", shown, running]
        self.display.update("  ".join(filter(None, parts)).rstrip())

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None: ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        return ConsoleLogger(self.display, name)

    def close(self, status: str = "FINISHED") -> None: ...


class CompositeLogger:
    """Forwards every call to several loggers, e.g. the terminal and the tracking server."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self.loggers = tuple(loggers)

    @property
    def record_id(self) -> str | None:
        return next(
            (logger.record_id for logger in self.loggers if logger.record_id is not None), None
        )

    def info(self, message: str) -> None:
        for logger in self.loggers:
            logger.info(message)

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        for logger in self.loggers:
            logger.progress(done, total, unit, running=running, **stats)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        for logger in self.loggers:
            logger.metrics(values, step)

    def params(self, values: Mapping[str, object]) -> None:
        for logger in self.loggers:
            logger.params(values)

    def tags(self, values: Mapping[str, str]) -> None:
        for logger in self.loggers:
            logger.tags(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        for logger in self.loggers:
            logger.artifact(path, folder)

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None:
        for logger in self.loggers:
            logger.register(name, folder, metric, value, **rule)

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        return CompositeLogger([logger.child(name, key, kind) for logger in self.loggers])

    def close(self, status: str = "FINISHED") -> None:
        for logger in self.loggers:
            logger.close(status)
