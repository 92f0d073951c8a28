"""The Tune trainable of a trial: the training loop in a process of its own, one step per epoch.

Tune reuses the process for later trials, so starting Python and importing torch costs its
seconds once per concurrent trial, not once per trial.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray import tune

from multistill.cluster.handback import Request, Watch
from multistill.errors import MultistillError
from multistill.full_disk import FullDiskError, writing
from multistill.search.space import apply
from multistill.search.spec import SearchSpec
from multistill.search.trial_folders import trial_folder, trial_lock
from multistill.search.tune_internals import preempted
from multistill.training.reports import TrainingInterrupted
from multistill.training.selection import recent_mean
from multistill.workspace import read_json, write_json

_PROGRESS = "trial.json"
_LOCK_TIMEOUT_S = 120

Objective = Callable[..., Iterator[Any]]
"""`objective(task, state_dir=...)` yields reports with `epoch`, `metrics` and `stop`, one per
epoch, and continues from `state_dir` when called again."""


class StudentTrainable(tune.Trainable):
    """Trains the student, or runs `objective(task, state_dir=...)`, epoch by epoch.

    Config: `folder` (of the search), `number` (Optuna's), `values` (of the space),
    `concurrency` (trials that this driver runs at the same time), `driver` (its name).
    Result of a step: `epoch`, `value` (best so far of the search's metric, by the means over
    `train.select_window` epochs), `cost` where there is a second objective, `metrics` of the
    epoch, `failure` (why it cannot continue), `full_disk` (whether that is why: the trial is to be
    continued).
    """

    def setup(self, config: dict[str, Any], objective: Objective | None = None) -> None:
        self._objective = objective
        self._lock: FileLock | None = None
        self._reports: Iterator[Any] | None = None
        self._watch: Watch | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the process for another trial. Tune does not call `cleanup` before."""
        self.cleanup()
        folder = self._folder = Path(new_config["folder"])
        self._spec = SearchSpec.read(folder)
        self._values = new_config["values"]
        self._number, self._concurrency = new_config["number"], new_config["concurrency"]
        self._driver = new_config["driver"]
        self._state_dir = trial_folder(folder, self._number)
        self._progress: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
        return True

    def step(self) -> dict[str, Any]:
        try:
            with writing(self._folder, "finished epochs"):
                return self._step()
        except FullDiskError as error:
            self.cleanup()
            return self._result(failure=str(error), full_disk=True)

    def _step(self) -> dict[str, Any]:
        started = time.monotonic()
        try:
            if self._reports is None:
                self._reports = self._start()
            report = next(self._reports, None)
        except TrainingInterrupted:
            return self._hand_back()
        except FullDiskError:
            raise
        except MultistillError as error:
            return self._result(failure=str(error))
        if report is None:
            nothing = "value" not in self._progress
            return self._result(failure="it ended without an epoch" if nothing else None, last=True)
        self._progress["seconds"] += time.monotonic() - started
        self._progress["epoch"] = report.epoch
        metrics = {name: float(value) for name, value in report.metrics.items()}
        failure = self._update_value(metrics)
        if failure is None:
            write_json(self._state_dir / _PROGRESS, self._progress)
        return self._result(
            metrics=metrics,
            failure=failure,
            last=bool(report.stop),
            train_seconds=metrics.get("seconds", 0.0),
        )

    def _hand_back(self) -> dict[str, Any]:
        """Go on elsewhere if the node goes away; tell nothing new if the driver ends."""
        self.cleanup()
        if self._watch is not None and self._watch.reason == "node":
            raise preempted()
        return self._result(failure=None)

    def cleanup(self) -> None:
        if self._reports is not None and hasattr(self._reports, "close"):
            self._reports.close()
        self._reports = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _start(self) -> Iterator[Any]:
        # Not in `setup`: Tune may set up a process for a trial and then run it in another.
        self._state_dir.mkdir(parents=True, exist_ok=True)
        # An earlier process of this trial, whose driver was lost, may still write its last epoch.
        self._lock = trial_lock(self._folder, self._number)
        self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        with contextlib.suppress(FileNotFoundError):
            self._progress = dict(read_json(self._state_dir / _PROGRESS))
        config = self._spec.config
        task = self._spec.with_budget(apply(self._spec.base, self._values))
        if config.second and "cost" not in self._progress:
            from multistill.search.cost import cost

            self._progress["cost"] = cost(config.second, task, self._folder)
        if self._objective is not None:
            return self._objective(task, state_dir=self._state_dir)
        self._catch_up()
        if self._watch is None:
            node = ray.get_runtime_context().get_node_id()
            self._watch = Watch(Request(self._driver), node)
        if config.workers_per_trial > 1:
            from multistill.search import multi_worker

            return multi_worker.fit(
                task, state_dir=self._state_dir, stop=self._watch, concurrency=self._concurrency
            )
        from multistill.training.loop import fit

        return fit(task, state_dir=self._state_dir, stop=self._watch)

    def _catch_up(self) -> None:
        """Count epochs that have a checkpoint but were killed before they were reported."""
        for metrics in self._history():
            if metrics["epoch"] > self._progress["epoch"]:
                self._progress["epoch"] = int(metrics["epoch"])
                self._progress["seconds"] += metrics.get("seconds", 0.0)
                self._update_value(metrics)

    def _history(self) -> list[dict[str, float]]:
        """Metrics of every epoch that an earlier process of this trial finished."""
        if self._spec.config.workers_per_trial > 1:
            from multistill.search.multi_worker import history

            return history(self._state_dir)
        from multistill.training.checkpoint import load_checkpoint, newest_epoch

        newest, _ = newest_epoch(self._state_dir)
        return load_checkpoint(self._state_dir, newest).progress.history if newest else []

    def _update_value(self, metrics: dict[str, float]) -> str | None:
        """Update the best value so far; return why the trial has failed, if it has."""
        epoch, metric = self._progress["epoch"], f"valid_{self._spec.config.metric}"
        for name in ("train_loss", metric):
            if name in metrics and not math.isfinite(metrics[name]):
                return f"diverged: {name} is {metrics[name]} in epoch {epoch}"
        if metric not in metrics:
            return f"the metric {metric} was not reported; epoch {epoch} reported {sorted(metrics)}"
        window = self._spec.base.train.select_window
        recent = [*self._progress.get("recent", []), metrics[metric]][-window:]
        best, mean = self._progress.get("value"), recent_mean(recent, window)
        better = max if self._spec.config.mode == "max" else min
        self._progress["recent"] = recent
        self._progress["value"] = mean if best is None else better(best, mean)
        return None

    def _result(self, *, failure: str | None, last: bool = False, **more: Any) -> dict[str, Any]:
        progress = self._progress
        epoch = int(progress["epoch"])
        finished = last or epoch >= self._spec.epochs
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
