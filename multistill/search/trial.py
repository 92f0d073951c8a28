"""One trial, in a process of its own: the training loop, one step per epoch.

The process is reused by the trials after it, so the seconds for starting Python and
importing torch are paid once per slot, not once per trial.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from ray import tune

from multistill.errors import MultistillError
from multistill.search.request import Request
from multistill.search.space import apply
from multistill.search.storage import trial_folder, trial_lock
from multistill.workspace import read_json, write_json

_PROGRESS = "trial.json"

Objective = Callable[..., Iterator[Any]]
"""`objective(task, state_dir=...)` yields reports with `epoch`, `metrics` and `stop`, one per
epoch, and continues from `state_dir` when called again."""


class Trial(tune.Trainable):
    """Runs `objective(task, state_dir=...)` epoch by epoch; without one, trains the student.

    Config: `folder` (the search's), `number` (Optuna's), `values` (of the space), `at_once`
    (trials of this driver at a time).
    Result of a step: `epoch`, `value` (best so far of the search's metric), `cost` where
    there is a second objective, `metrics` of the epoch, `failure` (why it cannot go on).
    """

    def setup(self, config: dict[str, Any], objective: Objective | None = None) -> None:
        self._objective = objective
        self._lock: FileLock | None = None
        self._epochs: Iterator[Any] | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        folder = self._folder = Path(new_config["folder"])
        self._request = Request.read(folder)
        self._values = new_config["values"]
        self._number, self._at_once = new_config["number"], new_config["at_once"]
        self._state = trial_folder(folder, self._number)
        self._progress: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
        return True

    def step(self) -> dict[str, Any]:
        started = time.monotonic()
        try:
            if self._epochs is None:
                self._epochs = self._start()
            report = next(self._epochs, None)
        except MultistillError as error:
            return self._result(failure=str(error))
        if report is None:
            nothing = "value" not in self._progress
            return self._result(failure="it ended without an epoch" if nothing else None, last=True)
        self._progress["seconds"] += time.monotonic() - started
        self._progress["epoch"] = report.epoch
        metrics = {name: float(value) for name, value in report.metrics.items()}
        failure = self._judge(metrics)
        if failure is None:
            write_json(self._state / _PROGRESS, self._progress)
        return self._result(
            metrics=metrics,
            failure=failure,
            last=bool(report.stop),
            train_seconds=metrics.get("seconds", 0.0),
        )

    def cleanup(self) -> None:
        if self._epochs is not None and hasattr(self._epochs, "close"):
            self._epochs.close()
        self._epochs = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _start(self) -> Iterator[Any]:
        # Not in `setup`: Tune may set up a process for a trial and then run it in another.
        self._state.mkdir(parents=True, exist_ok=True)
        # An earlier process of this trial may still write its last epoch (a lost driver).
        self._lock = trial_lock(self._folder, self._number)
        self._lock.acquire(timeout=120)
        with contextlib.suppress(FileNotFoundError):
            self._progress = dict(read_json(self._state / _PROGRESS))
        request = self._request
        task = request.budgeted(apply(request.base, self._values))
        if request.config.second and "cost" not in self._progress:
            from multistill.search.cost import cost

            self._progress["cost"] = cost(request.config.second, task, self._folder)
        if self._objective is not None:
            return self._objective(task, state_dir=self._state)
        self._catch_up()
        if request.config.workers_per_trial > 1:
            from multistill.search import workers

            return workers.fit(task, state_dir=self._state, at_once=self._at_once)
        from multistill.training.loop import fit

        return fit(task, state_dir=self._state)

    def _catch_up(self) -> None:
        """Take in epochs whose checkpoint was written, but whose report was cut off by a kill."""
        for metrics in self._on_disk():
            if metrics["epoch"] > self._progress["epoch"]:
                self._progress["epoch"] = int(metrics["epoch"])
                self._progress["seconds"] += metrics.get("seconds", 0.0)
                self._judge(metrics)

    def _on_disk(self) -> list[dict[str, float]]:
        """Metrics of every epoch that an earlier process of this trial finished."""
        if self._request.config.workers_per_trial > 1:
            from multistill.search.workers import history

            return history(self._state)
        from multistill.training.checkpoint import load_checkpoint, newest_epoch

        newest, _ = newest_epoch(self._state)
        return load_checkpoint(self._state, newest).progress.history if newest else []

    def _judge(self, metrics: dict[str, float]) -> str | None:
        """Take the epoch's value into the best so far, or say why the trial is over."""
        epoch, name = self._progress["epoch"], f"valid_{self._request.config.metric}"
        for figure in ("train_loss", name):
            if figure in metrics and not math.isfinite(metrics[figure]):
                return f"diverged: {figure} is {metrics[figure]} in epoch {epoch}"
        if name not in metrics:
            return f"the metric {name} was not reported; epoch {epoch} reported {sorted(metrics)}"
        best = self._progress.get("value")
        better = max if self._request.config.mode == "max" else min
        self._progress["value"] = metrics[name] if best is None else better(best, metrics[name])
        return None

    def _result(self, *, failure: str | None, last: bool = False, **more: Any) -> dict[str, Any]:
        progress = self._progress
        epoch = int(progress["epoch"])
        finished = last or epoch >= self._request.epochs
        return {
            "epoch": epoch,
            "value": float("nan") if failure else progress.get("value", float("nan")),
            "cost": progress.get("cost", 0.0),
            "metrics": {},
            "seconds": progress["seconds"],
            "failure": failure or "",
            "finished": finished,
            "done": finished or failure is not None,
            **more,
        }
