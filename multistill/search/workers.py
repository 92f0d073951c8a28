"""A trial of several workers: a Ray Train run of its own inside the trial's process.

The trial holds next to nothing itself; its workers hold what they need in a placement
group of Ray Train's. That run ends by itself when it is asked to, after the epoch in
hand: a Ray Train run that is killed leaves its group to a cleaner that needs Ray's
dashboard.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.tracking.logger import NullLogger
from multistill.training.export import HISTORY, is_finished, state_folder
from multistill.training.task import TrainingTask
from multistill.training.worker import STOP
from multistill.workspace import read_json

if TYPE_CHECKING:
    from multistill.training.loop import EpochReport

_NAME = "trial"


class _Feed(NullLogger):
    """Puts every epoch into a queue."""

    def __init__(self, reports: queue.SimpleQueue[Any]) -> None:
        self._reports = reports

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is not None:
            self._reports.put((step, dict(values)))


def fit(task: TrainingTask, *, state_dir: Path, at_once: int = 1) -> Iterator[EpochReport]:
    """As `training.loop.fit`, by `train.workers` workers; continues what `state_dir` holds.

    Args:
        at_once: trials at a time; they share the machine's cores.

    Closing the iterator ends the workers after their epoch. An epoch may then have been
    trained that was not yielded; `history` knows it.
    """
    from multistill.training.launcher import train
    from multistill.training.loop import EpochReport

    folder = state_dir / _NAME
    (folder / STOP).unlink(missing_ok=True)
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    named = replace(task, name=_NAME)

    def run() -> None:
        try:
            train([named], state_dir, _Feed(reports), concurrent_runs=at_once)
            reports.put(None)
        except BaseException as error:  # raised again where the trial hears it
            reports.put(error)

    thread = threading.Thread(target=run, name="trial-workers", daemon=True)
    thread.start()
    last = 0
    try:
        while (found := reports.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            last, metrics = found
            yield EpochReport(last, metrics, stop=last >= task.train.epochs)
        # By its own patience it may end before its budget.
    finally:
        if thread.is_alive():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STOP).touch()
            thread.join()


def history(state_dir: Path) -> list[dict[str, float]]:
    """Metrics of every epoch that is on disk, reported or not."""
    from multistill.training.checkpoint import load_checkpoint, newest_epoch

    folder = state_dir / _NAME
    if is_finished(folder):
        return list(read_json(folder / HISTORY)["epochs"])
    newest, _ = newest_epoch(state_folder(folder))
    return load_checkpoint(state_folder(folder), newest).progress.history if newest else []
