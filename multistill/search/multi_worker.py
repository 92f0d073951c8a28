"""A trial of several workers: a nested Ray Train run in the trial's process.

The trial itself holds almost no resources; its workers hold theirs in a placement group of
Ray Train. A stopped trial lets that run end by itself after the current epoch: a Ray Train
run that is killed leaves its placement group to a cleaner that needs Ray's dashboard.
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


class _EpochQueue(NullLogger):
    """Puts the metrics of every epoch into a queue."""

    def __init__(self, reports: queue.SimpleQueue[Any]) -> None:
        self._reports = reports

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is not None:
            self._reports.put((step, dict(values)))


def fit(task: TrainingTask, *, state_dir: Path, concurrency: int = 1) -> Iterator[EpochReport]:
    """Train on `train.workers` workers, as `training.loop.fit` does in one process.

    Continues the training in `state_dir`. Closing the iterator ends the workers after their
    current epoch; that epoch is not yielded, but `history` contains it.

    Args:
        concurrency: trials that run at the same time and share the machine's cores.
    """
    from multistill.training.launcher import train
    from multistill.training.loop import EpochReport

    folder = state_dir / _NAME
    (folder / STOP).unlink(missing_ok=True)
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    named = replace(task, name=_NAME)

    def run() -> None:
        try:
            train([named], state_dir, _EpochQueue(reports), concurrent_runs=concurrency)
            reports.put(None)
        except BaseException as error:  # raised again by the iterator
            reports.put(error)

    thread = threading.Thread(target=run, name="trial-workers", daemon=True)
    thread.start()
    try:
        # Early stopping may end the training before its budget.
        while (report := reports.get()) is not None:
            if isinstance(report, BaseException):
                raise report
            epoch, metrics = report
            yield EpochReport(epoch, metrics, stop=epoch >= task.train.epochs)
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
