"""A trial of several workers: a nested Ray Train run in the trial's process.

The trial itself holds almost no resources; its workers hold theirs in a placement group of
Ray Train. A stopped trial lets that run end by itself after the current epoch: a Ray Train
run that is killed leaves its placement group to a cleaner that needs Ray's dashboard.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.handback import Request
from multistill.tracking.logger import NullLogger
from multistill.training.export import HISTORY, is_finished, state_folder
from multistill.training.task import TrainingTask
from multistill.training.worker import STOP
from multistill.workspace import read_json

if TYPE_CHECKING:
    from multistill.training.reports import EpochReport

_NAME = "trial"
_POLL_S = 1.0


class _EpochQueue(NullLogger):
    """Puts the metrics of every epoch into a queue."""

    def __init__(self, reports: queue.SimpleQueue[Any]) -> None:
        self._reports = reports

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is not None:
            self._reports.put((step, dict(values)))


def fit(
    task: TrainingTask, *, state_dir: Path, stop: Callable[[], bool], concurrency: int = 1
) -> Iterator[EpochReport]:
    """Train on `train.workers` workers, as `training.loop.fit` does in one process.

    Continues the training in `state_dir`. Closing the iterator ends the workers after their
    current epoch; that epoch is not yielded, but `history` contains it.

    Args:
        stop: as of `training.loop.fit`.
        concurrency: trials that run at the same time and share the machine's cores.

    Raises:
        TrainingInterrupted: `stop` was true; the workers have saved after their step.
    """
    from multistill.training.launcher import train
    from multistill.training.reports import EpochReport, TrainingInterrupted

    folder = state_dir / _NAME
    (folder / STOP).unlink(missing_ok=True)
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    named, request = replace(task, name=_NAME), Request()

    def run() -> None:
        try:
            train(
                *([named], state_dir, _EpochQueue(reports)),
                concurrent_runs=concurrency,
                request=request,
            )
            reports.put(None)
        except BaseException as error:  # raised again by the iterator
            reports.put(error)

    thread = threading.Thread(target=run, name="trial-workers", daemon=True)
    thread.start()
    try:
        # Early stopping may end the training before its budget.
        while (report := _next(reports, stop, request)) is not None:
            if isinstance(report, KeyboardInterrupt):
                raise TrainingInterrupted(len(history(state_dir)), 0) from report
            if isinstance(report, BaseException):
                raise report
            epoch, metrics = report
            yield EpochReport(epoch, metrics, stop=epoch >= task.train.epochs)
    finally:
        if thread.is_alive():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STOP).touch()
            thread.join()


def _next(reports: queue.SimpleQueue[Any], stop: Callable[[], bool], request: Request) -> Any:
    """The next report of the workers, which are asked to return once `stop` is true."""
    asked = False
    while True:
        if not asked and stop():
            request.send("driver")
            asked = True
        try:
            return reports.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def history(state_dir: Path) -> list[dict[str, float]]:
    """Metrics of every epoch that is on disk, reported or not."""
    from multistill.training.checkpoint import load_checkpoint, newest_epoch

    folder = state_dir / _NAME
    if is_finished(folder):
        return list(read_json(folder / HISTORY)["epochs"])
    newest, _ = newest_epoch(state_folder(folder))
    return load_checkpoint(state_folder(folder), newest).progress.history if newest else []
