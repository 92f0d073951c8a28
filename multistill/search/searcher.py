"""Ray Tune's OptunaSearch, taught what a shared and interrupted study needs.

Tune keeps its own idea of an experiment in pickles and cannot continue it on another
machine. Here the Optuna study is the only state: every trial carries the name of the
driver that runs it, orphans of dead drivers are handed out again before new trials are
asked for, and a trial ends in the study by rules of ours (see `conclude`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.searcher import Searcher

from multistill.search.request import Request
from multistill.search.space import current, suggest
from multistill.search.storage import NotPickled, StudyLock, alive, attribute, quiet_optuna

DRIVER = "driver"
OUTCOME = "outcome"
_HOPELESS_AT_FIRST, _HOPELESS_LATER = 3, 10
"""Failures in a row that have one common cause: a full disk, a wrong setting, a lost mount."""


@dataclass
class Running:
    """A trial that this driver runs, handed out at `since` on the monotonic clock."""

    trial: optuna.Trial
    since: float


class StudySearch(NotPickled, OptunaSearch):
    """Hands out trials of one study to Tune.

    Args:
        target: trials that the study shall hold in the end, over all drivers.
        limit: trials at a time of this driver.
        most: trials that this searcher hands out before it says that it has no more.
        driver: name of this driver's lease.
        stopping: true once no new trial shall start.
        on_continue: told an orphan's Tune id and its history, to warm the scheduler.
    """

    def __init__(
        self,
        request: Request,
        folder: Path,
        storage: optuna.storages.BaseStorage,
        *,
        target: int,
        limit: int,
        most: int,
        driver: str,
        stopping: Callable[[], bool],
        on_continue: Callable[[str, FrozenTrial], None],
    ) -> None:
        self._request, self._folder, self._driver = request, folder, driver
        self._target, self._limit, self._left = target, limit, most
        self._stopping, self._on_continue = stopping, on_continue
        self._guard = StudyLock(folder)
        self.running: dict[str, Running] = {}
        self.failures_in_row = 0
        names = ["value", "cost"] if request.config.second else "value"
        modes = [request.config.mode, "min"] if request.config.second else request.config.mode
        with quiet_optuna():
            known = optuna.study.get_all_study_names(storage)
            asked = (
                len(optuna.load_study(study_name=request.study, storage=storage).trials)
                if request.study in known
                else 0
            )
            super().__init__(
                space=lambda trial: _asked(request, trial),
                metric=names,
                mode=modes,
                sampler=_sampler(request, asked),
                study_name=request.study,
                storage=storage,
            )
        self.study: optuna.Study = self._ot_study
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        self._succeeded = succeeded(self.study)
        # A study in which nothing ever worked was stopped by a common cause, now mended.
        self._forgiven = set() if self._succeeded else {trial.number for trial in failed}

    @property
    def should_abort(self) -> bool:
        """True if trials fail one after another, so that more of them are a waste."""
        patience = _HOPELESS_LATER if self._succeeded else _HOPELESS_AT_FIRST
        return self.failures_in_row >= max(patience, self._limit)

    @property
    def full(self) -> bool:
        """Whether it has handed out all that it may."""
        return self._left <= 0

    def used(self) -> int:
        """Trials that count towards the target."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(
            trial.state != TrialState.WAITING and trial.number not in self._forgiven
            for trial in trials
        )

    def orphans(self) -> list[FrozenTrial]:
        """Running trials whose driver is dead. Ask under the guard."""
        mine = {entry.trial.number for entry in self.running.values()}
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if trial.number not in mine
            and trial.user_attrs.get(DRIVER) != self._driver
            and not alive(self._folder, trial.user_attrs.get(DRIVER, ""))
        ]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if len(self.running) >= self._limit:
            return None
        if self._stopping() or self.full:
            return Searcher.FINISHED
        with self._guard, quiet_optuna():
            orphans = self.orphans()
            if orphans:
                trial = optuna.Trial(self.study, orphans[0]._trial_id)
                self._on_continue(trial_id, orphans[0])
            elif self.used() < self._target:
                trial = self._ask()
            else:
                return Searcher.FINISHED
            trial.set_user_attr(DRIVER, self._driver)
            self._ot_trials[trial_id] = trial
            values = super().suggest(trial_id)
        self.running[trial_id] = Running(trial, time.monotonic())
        self._left -= 1
        return {
            "folder": str(self._folder),
            "number": trial.number,
            "values": values,
            "at_once": self._limit,
        }

    def _ask(self) -> optuna.Trial:
        own = current(self._request.base, self._request.config.space)
        baseline = self._request.config.sampler != "tpe"
        if own is not None and not baseline and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(own)  # the student as configured is the first trial
        return self.study.ask()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.running and math.isfinite(result["value"]):
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result["epoch"]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tune's word that a trial ended. An error is concluded by `fail`, with its reason."""
        if trial_id not in self.running or error:
            return
        if result is None or "epoch" not in result:
            self.fail(trial_id, "stopped before its first epoch")
            return
        if result.get("failure"):
            self.fail(trial_id, str(result["failure"]), result)
            return
        if not self._request.config.second:
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result["epoch"]})
        self.conclude(trial_id, result)

    def conclude(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial with a value: COMPLETE if it had its budget or stopped gaining by its own
        patience, PRUNED if the scheduler stopped it, so that the sampler ranks its value
        among trials of that length. (Optuna keeps no intermediate values of two objectives,
        there the best so far counts.)"""
        pruned = not result["finished"]
        if self._request.config.second:
            state, values = TrialState.COMPLETE, [result["value"], result["cost"]]
        elif pruned:
            state, values = TrialState.PRUNED, None
        else:
            state, values = TrialState.COMPLETE, [result["value"]]
        reason = f"stopped by the scheduler after epoch {result['epoch']}" if pruned else ""
        self._tell(trial_id, state, values, reason, result)

    def fail(self, trial_id: str, reason: str, result: Mapping[str, Any] | None = None) -> None:
        """A trial without a value."""
        self._tell(trial_id, TrialState.FAIL, None, reason, result or {})

    def _tell(
        self,
        trial_id: str,
        state: TrialState,
        values: list[float] | None,
        reason: str,
        result: Mapping[str, Any],
    ) -> None:
        entry = self.running.pop(trial_id, None)
        if entry is None:
            return
        outcome = {
            "reason": reason,
            "epochs": int(result.get("epoch", 0)),
            "seconds": round(float(result.get("seconds", 0.0)), 3),
        }
        if "cost" in result and self._request.config.second:
            outcome["cost"] = float(result["cost"])
        with quiet_optuna():
            entry.trial.set_user_attr(OUTCOME, outcome)
            self.study.tell(entry.trial, values, state=state, skip_if_finished=True)
        failed = state == TrialState.FAIL
        self.failures_in_row = self.failures_in_row + 1 if failed else 0
        self._succeeded = self._succeeded or not failed
        self._ot_trials.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state, and Tune's copy of it would be a pickle."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, as `save`."""


def succeeded(study: optuna.Study) -> bool:
    """Whether any trial of the study came to a value."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def reason_of(trial: FrozenTrial) -> str:
    return str(attribute(trial, OUTCOME).get("reason", ""))


class _Grid(optuna.samplers.GridSampler):
    """Optuna's grid without its wish to end Optuna's own loop at the last point: the loop is
    Tune's, and the wish an error there that would run the last trial twice."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None: ...


def _asked(request: Request, trial: Any) -> None:
    suggest(request.config.space, trial)


def _sampler(request: Request, asked: int) -> optuna.samplers.BaseSampler:
    """TPE over all parameters together (Falkner 2018), for several trials at a time.

    The seed takes in how many trials there are: a continued study would otherwise repeat
    the first points of its random start.
    """
    config = request.config
    seed = (request.seed + 7919 * asked) % 2**32
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "grid":
        axes = {name: parameter.choices for name, parameter in config.space.items()}
        return _Grid(axes, seed=request.seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=config.startup_trials,
        multivariate=True,
        group=any(parameter.when for parameter in config.space.values()),
        constant_liar=True,
        seed=seed,
    )
