"""What the driver tells the outside about its trials: one record each, one metric row an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from multistill.search.searcher import StudySearch
from multistill.search.storage import NotPickled, trial_key
from multistill.tracking.logger import RunLogger


class Recorder(NotPickled, tune.Callback):
    """Tune's events, passed to a `RunLogger`.

    A `RunLogger` never raises, which matters here: Tune ends the whole search when a callback
    does. Trials are forgotten when they end, so the driver does not grow with the search.
    """

    def __init__(
        self,
        logger: RunLogger,
        searcher: StudySearch,
        done: int,
        total: int,
        best: float | None,
        ended: Callable[[int], object],
    ) -> None:
        self._logger, self._searcher = logger, searcher
        self._done, self._total, self._ended = done, total, ended
        self.ended = 0
        self._children: dict[str, RunLogger] = {}
        self._sign = 1.0 if searcher.study.directions[0].name == "MAXIMIZE" else -1.0
        self._best = best
        self._started: set[str] = set()
        self.waits: list[float] = []
        self.training_seconds = 0.0

    @property
    def should_abort(self) -> bool:
        return self._searcher.should_abort

    @property
    def full(self) -> bool:
        return self._searcher.full

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self._children:  # another attempt of the same trial
            return
        number = trial.config["number"]
        child = self._logger.child(f"trial {number}", trial_key(number), "trial")
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
            self.waits.append(max(0.0, time.monotonic() - entry.since - seconds))
        child = self._children.get(trial.trial_id)
        if child is not None and result["metrics"]:
            child.metrics(result["metrics"], step=int(result["epoch"]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._logger.info(f"trial {number}: {_reason(trial)}; it goes on from its last checkpoint")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        failure = str(result.get("failure", ""))
        if failure:
            self._logger.info(f"trial {trial.config['number']} failed: {failure}")
        self._close(trial, "FAILED" if failure else "FINISHED", result, failure)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _reason(trial)
        self._searcher.fail(trial.trial_id, reason, trial.last_result or {})
        self._logger.info(f"trial {trial.config['number']} failed: {reason}")
        self._close(trial, "FAILED", trial.last_result or {}, reason)

    def interrupted(self) -> None:
        """Trials in hand are to be continued: their records say that they were cut off."""
        for child in self._children.values():
            child.close("KILLED")
        self._children.clear()

    def _close(self, trial: Any, status: str, result: dict[str, Any], reason: str) -> None:
        child = self._children.pop(trial.trial_id, None)
        if child is None:
            return
        self._ended(trial.config["number"])
        self.ended += 1
        value = result.get("value")
        if not reason and value is not None:
            child.metrics({"value": float(value), "epochs": float(result["epoch"])})
            better = self._best is None or self._sign * value > self._sign * self._best
            self._best = float(value) if better else self._best
            if not result["finished"]:
                reason = f"stopped by the scheduler after epoch {result['epoch']}"
        child.tags({"reason": reason or "ran its budget"})
        child.close(status)
        # Tune keeps statistics of every figure of every trial, 30 kB each; nothing reads them.
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        self._done += 1
        self._started.discard(trial.trial_id)
        self._logger.progress(
            self._done,
            self._total,
            "trials",
            **({} if self._best is None else {"best": self._best}),
        )


def _reason(trial: Any) -> str:
    """Last line of the error that Tune wrote down for a trial."""
    try:
        lines = Path(trial.error_file).read_text(encoding="utf-8").splitlines()
    except (OSError, TypeError):
        return "its process ended without a word"
    text = "\n".join(lines)
    if "ActorDiedError" in text or "died unexpectedly" in text or "actor died" in text:
        return "its process died (killed, or out of memory)"
    shown = [line.strip() for line in lines if line.strip()]
    return shown[-1][:500] if shown else "its process ended without a word"
