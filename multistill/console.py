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

from multistill.watch import Watch

SECONDS_BETWEEN_LINES = 5.0
SHOWN = ("train_loss", "valid_macro_f1", "valid_uar")


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


class Screen:
    """The one place that writes progress; shared by all watches of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self._lock = RLock()
        self._live: Live | None = None
        self._last = 0.0

    def line(self, text: str, style: str = "") -> None:
        with self._lock:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def moving(self, text: str) -> None:
        """Replace the live line, or print now and then where there is no terminal."""
        with self._lock:
            if self.console.is_terminal:
                if self._live is None:
                    self._live = Live(console=self.console, transient=True, auto_refresh=False)
                    self._live.start()
                self._live.update(Text(f"  {text}", style="dim", overflow="ellipsis"), refresh=True)
            elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
                self._last = time.monotonic()
                self.line(f"  {text}")

    def settle(self) -> None:
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


class ConsoleWatch:
    """A `Watch` that shows, and records nothing."""

    record_id: str | None = None

    def __init__(self, screen: Screen, name: str) -> None:
        self.screen = screen
        self.name = name

    def say(self, message: str) -> None:
        self.screen.line(f"  {message}")

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        share = f"{100 * done / total:3.0f} %" if total else ""
        shown = "  ".join(figure(name, value) for name, value in figures.items())
        self.screen.moving(f"{self.name}  {done:g}/{total:g} {unit} {share}  {shown}".rstrip())

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        shown = [f"{key.replace('_', ' ')} {values[key]:.3f}" for key in SHOWN if key in values]
        if step is not None and shown:
            self.screen.moving(f"{self.name}  epoch {step}  {'  '.join(shown)}")

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None: ...

    def child(self, name: str, key: str, kind: str) -> Watch:
        return ConsoleWatch(self.screen, name)

    def close(self, status: str = "FINISHED") -> None: ...


class Several:
    """One watch made of several: the terminal and the tracking server, say."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.watches = tuple(watches)

    @property
    def record_id(self) -> str | None:
        return next((w.record_id for w in self.watches if w.record_id is not None), None)

    def say(self, message: str) -> None:
        for watch in self.watches:
            watch.say(message)

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        for watch in self.watches:
            watch.progress(done, total, unit, **figures)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        for watch in self.watches:
            watch.metrics(values, step)

    def params(self, values: Mapping[str, object]) -> None:
        for watch in self.watches:
            watch.params(values)

    def tags(self, values: Mapping[str, str]) -> None:
        for watch in self.watches:
            watch.tags(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        for watch in self.watches:
            watch.artifact(path, folder)

    def register(self, name: str, folder: Path, metric: str, value: float, **rule: Any) -> None:
        for watch in self.watches:
            watch.register(name, folder, metric, value, **rule)

    def child(self, name: str, key: str, kind: str) -> Watch:
        return Several([watch.child(name, key, kind) for watch in self.watches])

    def close(self, status: str = "FINISHED") -> None:
        for watch in self.watches:
            watch.close(status)
