"""Progress for people, on standard error; results go to standard output.

On a terminal one live line moves; elsewhere (a log, CI, a Ray job) a line is printed
when something changes, at most every few seconds.
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
SHOWN = ("train_loss", "valid_macro_f1", "valid_uar")


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


class ProgressDisplay:
    """The one place that writes progress; shared by all loggers of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self._lock = RLock()
        self._live: Live | None = None
        self._last = 0.0

    def print(self, text: str, style: str = "") -> None:
        with self._lock:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def update(self, text: str) -> None:
        """Replace the live line, or print now and then where there is no terminal."""
        with self._lock:
            if self.console.is_terminal:
                if self._live is None:
                    self._live = Live(console=self.console, transient=True, auto_refresh=False)
                    self._live.start()
                self._live.update(Text(f"  {text}", style="dim", overflow="ellipsis"), refresh=True)
            elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
                self._last = time.monotonic()
                self.print(f"  {text}")

    def clear(self) -> None:
        """Take the live line away, e.g. at the end of a stage."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None


def figure(name: str, value: float) -> str:
    """`clips per second 1,234`, `1:02:03 left`."""
    if name == "seconds_left":
        return f"{timedelta(seconds=round(value))} left"
    return f"{name.replace('_', ' ')} {f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'}"


class ConsoleLogger:
    """A `RunLogger` that shows, and records nothing."""

    record_id: str | None = None

    def __init__(self, display: ProgressDisplay, name: str) -> None:
        self.display = display
        self.name = name

    def info(self, message: str) -> None:
        self.display.print(f"  {message}")

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        share = f"{100 * done / total:3.0f} %" if total else ""
        shown = "  ".join(figure(name, value) for name, value in figures.items())
        self.display.update(f"{self.name}  {done:g}/{total:g} {unit} {share}  {shown}".rstrip())

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        shown = [f"{key.replace('_', ' ')} {values[key]:.3f}" for key in SHOWN if key in values]
        if step is not None and shown:
            self.display.update(f"{self.name}  epoch {step}  {'  '.join(shown)}")

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None: ...

    def child(self, name: str, key: str, kind: str) -> RunLogger:
        return ConsoleLogger(self.display, name)

    def close(self, status: str = "FINISHED") -> None: ...


class CompositeLogger:
    """One logger made of several: the terminal and the tracking server, say."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self.loggers = tuple(loggers)

    @property
    def record_id(self) -> str | None:
        return next((w.record_id for w in self.loggers if w.record_id is not None), None)

    def info(self, message: str) -> None:
        for logger in self.loggers:
            logger.info(message)

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        for logger in self.loggers:
            logger.progress(done, total, unit, **figures)

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
