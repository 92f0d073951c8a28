"""What the driver tells the outside about its trials: one record each, one metric row an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune

from multistill.search.searcher import StudySearch
from multistill.search.storage import Unsaved, trial_key
from multistill.watch import Watch


class Recorder(Unsaved, tune.Callback):
    """Tune's events, passed to a `Watch`.

    A `Watch` never raises, which matters here: Tune ends the whole search when a callback
    does. Trials are forgotten when they end, so the driver does not grow with the search.
    """

    def __init__(
        self,
        watch: Watch,
        searcher: StudySearch,
        done: int,
        total: int,
        ended: Callable[[int], object],
    ) -> None:
        self._watch, self._searcher = watch, searcher
        self._done, self._total, self._ended = done, total, ended
        self.ended = 0
        self._children: dict[str, Watch] = {}
        self._asked: dict[str, float] = {}
        self.waits: list[float] = []
        self.training_seconds = 0.0

    @property
    def hopeless(self) -> bool:
        return self._searcher.hopeless

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self._children:  # another attempt of the same trial
            return
        number = trial.config["number"]
        child = self._watch.child(f"trial {number}", trial_key(number), "trial")
        child.params(trial.config["values"])
        self._children[trial.trial_id] = child
        self._asked[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        seconds = float(result.get("train_seconds", 0.0))
        self.training_seconds += seconds
        asked = self._asked.pop(trial.trial_id, None)
        if asked is not None and seconds:
            self.waits.append(max(0.0, time.monotonic() - asked - seconds))
        child = self._children.get(trial.trial_id)
        if child is not None and result["metrics"]:
            child.metrics(result["metrics"], step=int(result["epoch"]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._watch.say(f"trial {number}: {_reason(trial)}; it goes on from its last checkpoint")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        failure = str(result.get("failure", ""))
        if failure:
            self._watch.say(f"trial {trial.config['number']} failed: {failure}")
        self._close(trial, "FAILED" if failure else "FINISHED", result, failure)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _reason(trial)
        self._searcher.fail(trial.trial_id, reason, trial.last_result or {})
        self._watch.say(f"trial {trial.config['number']} failed: {reason}")
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
            if not result["finished"]:
                reason = f"stopped by the scheduler after epoch {result['epoch']}"
        child.tags({"reason": reason or "ran its budget"})
        child.close(status)
        self._done += 1
        best = _best(self._searcher)
        self._watch.progress(
            self._done, self._total, "trials", **({} if best is None else {"best": best})
        )


def _best(searcher: StudySearch) -> float | None:
    """Best value so far of the first metric."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    values = [
        t.values[0] for t in searcher.study.get_trials(deepcopy=False, states=states) if t.values
    ]
    if not values:
        return None
    first = searcher.study.directions[0].name
    return float(max(values) if first == "MAXIMIZE" else min(values))


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
