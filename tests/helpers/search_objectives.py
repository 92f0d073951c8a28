"""Objectives in place of training. Ray's workers import this module.

Each keeps its epoch in `state_dir`, as `fit` does, so that it can be killed and continued,
and appends one line per epoch that it ran to `ran.log` in the search's folder.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Report:
    epoch: int
    metrics: dict[str, float]
    best: bool = True
    stop: bool = False


def score(task, epoch: int) -> float:
    """Up to 0.9, at temperature 3 and weight 0.6; grows with the epochs."""
    settings = task.distillation
    loss = (settings.temperature - 3.0) ** 2 / 50 + (settings.weight - 0.6) ** 2
    return max(0.0, 0.9 - loss) * (1 - 0.5**epoch)


def fast(task, *, state_dir: Path, seconds: float = 0.0) -> Iterator[Report]:
    file = state_dir / "epoch"
    first = int(file.read_text()) + 1 if file.exists() else 1
    for epoch in range(first, task.train.epochs + 1):
        time.sleep(seconds)
        file.write_text(str(epoch))
        with (state_dir.parent.parent / "ran.log").open("a") as log:
            log.write(f"{state_dir.name} {epoch} {os.getpid()}\n")
        value = score(task, epoch)
        metrics = {"train_loss": 1 - value, "valid_macro_f1": value, "seconds": seconds + 1e-3}
        yield Report(epoch, metrics, stop=epoch == task.train.epochs)


def slow(task, *, state_dir: Path) -> Iterator[Report]:
    yield from fast(task, state_dir=state_dir, seconds=0.25)


def diverging(task, *, state_dir: Path) -> Iterator[Report]:
    """The loss is NaN in the second epoch where the weight is large."""
    for report in fast(task, state_dir=state_dir):
        diverged = report.epoch == 2 and task.distillation.weight > 0.5
        yield Report(
            report.epoch,
            {**report.metrics, "train_loss": float("nan")} if diverged else report.metrics,
            stop=report.stop,
        )


def raising(task, *, state_dir: Path) -> Iterator[Report]:
    yield Report(1, {"valid_macro_f1": 0.1, "train_loss": 1.0})
    raise RuntimeError("CUDA out of memory")


def without_metric(task, *, state_dir: Path) -> Iterator[Report]:
    yield Report(1, {"train_loss": 1.0})


def killed_once(task, *, state_dir: Path) -> Iterator[Report]:
    """The process is killed once, after the second epoch of the first trial."""
    marker = state_dir.parent.parent / "killed"
    for report in fast(task, state_dir=state_dir):
        yield report
        if report.epoch == 2 and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), 9)


def stuck_once(task, *, state_dir: Path) -> Iterator[Report]:
    """As `slow`; in the first attempt at the first two trials, the second epoch takes minutes."""
    for report in slow(task, state_dir=state_dir):
        yield report
        marker = state_dir.parent.parent / f"stuck-{state_dir.name}"
        if report.epoch == 1 and state_dir.name < "0002" and not marker.exists():
            marker.touch()
            time.sleep(300)


def full_disk(task, *, state_dir: Path) -> Iterator[Report]:
    """As `fast`; the disk is full from the third epoch on, while a file says so."""
    for report in fast(task, state_dir=state_dir):
        if report.epoch == 3 and (state_dir.parent.parent / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield report
