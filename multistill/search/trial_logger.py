"""A Tune callback that logs every trial as a run of its own: one row of metrics per epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune

from multistill.cluster.waiting import Waiting
from multistill.search.searcher import SharedStudySearcher
from multistill.search.storage import run_suffix
from multistill.search.trial_folders import run_key
from multistill.search.tune_internals import NotPickled, drop_statistics, failure_reason
from multistill.tracking.logger import RunLogger
from multistill.wording import listed


class TrialLogger(NotPickled, tune.Callback):
    """Passes Tune's events to a `RunLogger`.

    A `RunLogger` never raises, which matters here: an exception in a callback ends the whole
    experiment. A trial is forgotten when it ends, so the driver's memory does not grow with
    the search.

    Args:
        waiting: told whether a trial runs.
        finished: trials of the search that finished before.
        total: trials of the search.
        epochs: budget of a trial.
        best: best value so far, if there is one.
        on_end: called with the number of a trial that ended.

    Attributes:
        trials_ended: trials that ended in this experiment.
        start_delays: per trial, seconds from its hand-out to its first epoch.
        training_seconds: over all epochs of all trials.
    """

    def __init__(
        self,
        logger: RunLogger,
        searcher: SharedStudySearcher,
        waiting: Waiting,
        *,
        finished: int,
        total: int,
        epochs: int,
        best: float | None,
        on_end: Callable[[int], object],
    ) -> None:
        self._logger, self._searcher, self._on_end = logger, searcher, on_end
        self._waiting, self._epochs = waiting, epochs
        self._reached: dict[int, int] = {}
        self._finished, self._total, self._best = finished, total, best
        self._sign = 1.0 if searcher.study.directions[0].name == "MAXIMIZE" else -1.0
        self._suffix = run_suffix(searcher.study)
        self._children: dict[str, RunLogger] = {}
        self._started: set[str] = set()
        self.trials_ended = 0
        self.start_delays: list[float] = []
        self.training_seconds = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._waiting.look(lambda: any(trial.status == "RUNNING" for trial in trials))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self._children:  # another attempt of the same trial
            return
        number = trial.config["number"]
        child = self._logger.child(f"trial {number}", run_key(number, self._suffix), "trial")
        child.params(trial.config["values"])
        self._children[trial.trial_id] = child

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        seconds = float(result.get("train_seconds", 0.0))
        self.training_seconds += seconds
        entry = self._searcher.running.get(trial.trial_id)
        if seconds and entry is not None and trial.trial_id not in self._started:
            self._started.add(trial.trial_id)
            self.start_delays.append(max(0.0, time.monotonic() - entry.started - seconds))
        child = self._children.get(trial.trial_id)
        if child is not None and result["metrics"]:
            child.metrics(result["metrics"], step=int(result["epoch"]))
            self._reached[trial.config["number"]] = int(result["epoch"])
            self._show_progress()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._logger.info(
            f"trial {trial.config['number']}: {failure_reason(trial)}; it continues from its last "
            "checkpoint"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        failure = str(result.get("failure", ""))
        if result.get("full_disk") or trial.trial_id in self._searcher.running:
            self._keep(trial)
            return
        if failure:
            self._logger.info(f"trial {trial.config['number']} failed: {failure}")
        self._close(trial, "FAILED" if failure else "FINISHED", result, failure)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = failure_reason(trial)
        self._searcher.fail(trial.trial_id, reason, trial.last_result or {})
        if trial.trial_id in self._searcher.running:
            self._keep(trial)
            return
        self._logger.info(f"trial {trial.config['number']} failed: {reason}")
        self._close(trial, "FAILED", trial.last_result or {}, reason)

    def close_running(self) -> None:
        """Close the runs of trials that are still running as KILLED; they can be continued."""
        for child in self._children.values():
            child.close("KILLED")
        self._children.clear()

    def _keep(self, trial: Any) -> None:
        """Close the run of a trial that ended here and not in the study: it is continued."""
        if (child := self._children.pop(trial.trial_id, None)) is not None:
            child.close("KILLED")

    def _close(self, trial: Any, status: str, result: dict[str, Any], reason: str) -> None:
        child = self._children.pop(trial.trial_id, None)
        if child is None:
            return
        self._on_end(trial.config["number"])
        self.trials_ended += 1
        value = result.get("value")
        if not reason and value is not None:
            child.metrics({"value": float(value), "trained_epochs": float(result["epoch"])})
            better = self._best is None or self._sign * value > self._sign * self._best
            self._best = float(value) if better else self._best
            if not result["finished"]:
                reason = f"stopped by the scheduler after epoch {result['epoch']}"
        child.tags({"reason": reason or "ran its budget"})
        child.close(status)
        drop_statistics(trial)
        self._finished += 1
        self._started.discard(trial.trial_id)
        self._reached.pop(trial.config["number"], None)
        self._show_progress()

    def _show_progress(self) -> None:
        best = {} if self._best is None else {"best": self._best}
        running = listed(
            [f"trial {number} {epoch}/{self._epochs}" for number, epoch in self._reached.items()]
        )
        self._logger.progress(self._finished, self._total, "trials", running=running, **best)
