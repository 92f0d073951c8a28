"""A Ray Tune searcher that hands out the trials of a shared and interruptible Optuna study.

Tune keeps the state of an experiment in pickles and cannot continue it on another machine.
Here the Optuna study is the only state: every trial carries the name of the driver that runs
it, orphaned trials of dead drivers are handed out before new ones are created, and
`SharedStudySearcher` decides in which state a trial ends. (Tune's `OptunaSearch` has no
public way to do any of this.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from multistill.search.locks import StudyLock, is_alive, living_drivers
from multistill.search.long_studies import (
    WindowedTPESampler,
    has_trial,
    look_for_waiting_only,
)
from multistill.search.space import current, suggest
from multistill.search.spec import SearchSpec
from multistill.search.storage import (
    DRIVER,
    OUTCOME,
    has_values,
    open_storage,
    open_study,
    quiet_optuna,
)
from multistill.search.tune_internals import (
    NotPickled,
    reopen_trial,
)

_MAX_FIRST_FAILURES, _MAX_FAILURES = 3, 10
"""Consecutive failures, before and after the first success, that have a common cause: a full
disk, a wrong setting, a lost mount."""


_T = TypeVar("_T")


@dataclass
class RunningTrial:
    """A trial that this driver runs, handed out at `started` on the monotonic clock."""

    trial: optuna.Trial
    started: float


class SharedStudySearcher(NotPickled, Searcher):
    """Hands out trials of one study to Tune.

    Args:
        concurrency: trials that this driver runs at the same time.
        max_trials: trials that this searcher hands out at most.
        driver: name of this driver's lease.
        stop_requested: whether no new trial may start.
        on_continue: called with Tune's id of an orphaned trial that is continued and with its
            history, for the scheduler.

    Attributes:
        running: by Tune's id, trials that were handed out and have no end in the study.
        full_disk: what a trial said that met a full disk; then none is handed out any more.
        storage_error: why the study could not be read or written; it is then left alone.
    """

    def __init__(
        self,
        spec: SearchSpec,
        folder: Path,
        *,
        concurrency: int,
        max_trials: int,
        driver: str,
        stop_requested: Callable[[], bool],
        on_continue: Callable[[str, FrozenTrial], None],
    ) -> None:
        config = spec.config
        if config.second:
            super().__init__(metric=["value", "cost"], mode=[config.mode, "min"])
        else:
            super().__init__(metric="value", mode=config.mode)
        self._spec, self._folder, self._driver = spec, folder, driver
        self._concurrency, self._trials_left = concurrency, max_trials
        self._stop_requested, self._on_continue = stop_requested, on_continue
        self._lock = StudyLock(folder)
        self.running: dict[str, RunningTrial] = {}
        self._consecutive_failures = 0
        self.full_disk: str | None = None
        self.storage_error: Exception | None = None
        self.study = open_study(open_storage(folder, config.storage), spec.study, spec.directions)
        look_for_waiting_only(self.study)
        trials = self.study.get_trials(deepcopy=False)
        with quiet_optuna():
            self.study.sampler = _sampler(spec, len(trials))
        self._succeeded = has_values(self.study)
        # Failed trials of a study without any value had a common cause that has been fixed
        # since: they do not count as trials of the search.
        failed = {trial.number for trial in trials if trial.state == TrialState.FAIL}
        self._not_counted = set() if self._succeeded else failed
        self._created = len(trials)
        self._others: set[str] = set()
        self._may_have_orphans = True

    @property
    def should_abort(self) -> bool:
        """Whether so many trials failed in a row that more of them would be a waste."""
        limit = _MAX_FAILURES if self._succeeded else _MAX_FIRST_FAILURES
        return self._consecutive_failures >= max(limit, self._concurrency)

    @property
    def exhausted(self) -> bool:
        """Whether `max_trials` trials have been handed out."""
        return self._trials_left <= 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of Tune's next trial; None if all slots of this driver are used."""
        if len(self.running) >= self._concurrency:
            return None
        if self._stop_requested() or self.exhausted or self.full_disk is not None:
            return Searcher.FINISHED
        return self._stored(lambda: self._hand_out(trial_id)) or Searcher.FINISHED

    def _stored(self, request: Callable[[], _T]) -> _T | None:
        """Carry out a request to the study; None if its storage fails now, or did before.

        The error ends the experiment (`run_experiment` raises it). Raised in a callback, it would
        let Tune repeat a trial that has ended, or reach the user as the text of a traceback.
        """
        if self.storage_error is not None:
            return None
        try:
            return request()
        except Exception as error:  # database drivers raise arbitrary exceptions
            self.storage_error = error
            return None

    def _hand_out(self, trial_id: str) -> dict[str, Any] | None:
        """The config of an orphan or of a new trial; None if the search has its trials."""
        with self._lock, quiet_optuna():
            has_room = self._has_room()
            orphan = self._orphan(look=not has_room)
            if orphan is not None:
                trial = reopen_trial(self.study, orphan)
                self._on_continue(trial_id, orphan)
            elif has_room:
                trial = self._ask()
            else:
                return None
            trial.set_user_attr(DRIVER, self._driver)
            values = suggest(self._spec.config.space, trial)
        self.running[trial_id] = RunningTrial(trial, time.monotonic())
        self._trials_left -= 1
        return {
            "folder": str(self._folder),
            "number": trial.number,
            "values": values,
            "concurrency": self._concurrency,
            "driver": self._driver,
        }

    def _orphan(self, *, look: bool) -> FrozenTrial | None:
        """The first running trial whose driver is dead. Call it under the study's lock.

        All trials are looked at only if there is a reason: an orphan the last time, a driver that
        has gone since, or `look`, without which a driver that came and went unseen would leave
        its trials.
        """
        others = living_drivers(self._folder) - {self._driver}
        look = look or self._may_have_orphans or bool(self._others - others)
        self._others = others
        if not look:
            return None
        own = {entry.trial.number for entry in self.running.values()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            driver = trial.user_attrs.get(DRIVER, "")
            if (
                trial.number not in own
                and driver != self._driver
                and not is_alive(self._folder, driver)
            ):
                self._may_have_orphans = True
                return trial
        self._may_have_orphans = False
        return None

    def _has_room(self) -> bool:
        """Whether the search has fewer trials, of all drivers, than it shall have.

        Trials are looked at only once there are as many as the search has: some may not count.
        """
        while has_trial(self.study, self._created):
            self._created += 1
        trials = self._spec.config.trials
        if self._created - len(self._not_counted) < trials:
            return True
        return trials > sum(
            trial.state != TrialState.WAITING and trial.number not in self._not_counted
            for trial in self.study.get_trials(deepcopy=False)
        )

    def _ask(self) -> optuna.Trial:
        config = self._spec.config
        configured = None if self._created else current(self._spec.base, config.space)
        if configured is not None and config.sampler == "tpe":
            self.study.enqueue_trial(configured)  # the student as configured is the first trial
        return self.study.ask()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the value of an epoch to the study."""
        if trial_id in self.running and math.isfinite(result["value"]):
            self._report(trial_id, result)

    def _report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if not self._spec.config.second:  # Optuna has no intermediate values of two objectives
            trial = self.running[trial_id].trial
            self._stored(lambda: trial.report(result["value"], step=result["epoch"]))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Finish a trial that Tune ended. After an error, `TrialLogger` calls `fail` with the
        reason, which Tune does not pass to a searcher."""
        if trial_id not in self.running or error:
            return
        if result is None or "epoch" not in result:
            self.fail(trial_id, "stopped before its first epoch")
        elif result.get("full_disk"):  # stays as it is in the study, to be continued
            self.full_disk = str(result["failure"])
            del self.running[trial_id]
        elif result.get("failure"):
            self.fail(trial_id, str(result["failure"]), result)
        else:
            self._report(trial_id, result)
            self._complete(trial_id, result)

    def _complete(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Finish a trial that has a value.

        COMPLETE if it used its budget or ended by its own patience; PRUNED if the scheduler
        stopped it, so that the sampler ranks its value among trials of that length. With two
        objectives Optuna keeps no intermediate values, so a stopped trial is COMPLETE to its
        sampler, with its best value so far; its outcome says that it was stopped.
        """
        pruned = not result["finished"]
        if self._spec.config.second:
            state, values = TrialState.COMPLETE, [result["value"], result["cost"]]
        elif pruned:
            state, values = TrialState.PRUNED, None
        else:
            state, values = TrialState.COMPLETE, [result["value"]]
        reason = f"stopped by the scheduler after epoch {result['epoch']}" if pruned else ""
        self._tell(trial_id, state, values, reason, result, stopped=pruned)

    def fail(self, trial_id: str, reason: str, result: Mapping[str, Any] | None = None) -> None:
        """Finish a trial that has no value."""
        self._tell(trial_id, TrialState.FAIL, None, reason, result or {})

    def _tell(
        self,
        trial_id: str,
        state: TrialState,
        values: list[float] | None,
        reason: str,
        result: Mapping[str, Any],
        stopped: bool = False,
    ) -> None:
        if trial_id not in self.running:
            return
        outcome = {
            "reason": reason,
            "stopped": stopped,
            "epochs": int(result.get("epoch", 0)),
            "seconds": round(float(result.get("seconds", 0.0)), 3),
        }
        if "cost" in result and self._spec.config.second:
            outcome["cost"] = float(result["cost"])
        trial = self.running[trial_id].trial

        def tell() -> None:
            with quiet_optuna():
                trial.set_user_attr(OUTCOME, outcome)
                self.study.tell(trial, values, state=state, skip_if_finished=True)

        self._stored(tell)
        if self.storage_error is not None:  # it has no end: the next call continues it
            return
        del self.running[trial_id]
        failed = state == TrialState.FAIL
        self._consecutive_failures = self._consecutive_failures + 1 if failed else 0
        self._succeeded = self._succeeded or not failed

    def add_attribute(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._stored(lambda: self.study.set_user_attr(name, value))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is the state, and Tune's copy of it would be a pickle."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing, as `save`."""


class _GridSampler(optuna.samplers.GridSampler):
    """Optuna's grid without `after_trial`, which stops Optuna's own loop at the last point.

    Tune runs the loop here: the stop would be an error, and the last trial would run twice.
    """

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None: ...


def _sampler(spec: SearchSpec, num_trials: int) -> optuna.samplers.BaseSampler:
    """The sampler of a driver that finds `num_trials` trials in the study.

    TPE models all parameters together (Falkner 2018) and takes running trials into account; of a
    long search it models the best and the latest trials.
    The seed depends on the number of trials: a continued study would otherwise repeat the
    first points of its random start.
    """
    config = spec.config
    seed = (spec.seed + 7919 * num_trials) % 2**32
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "grid":
        axes = {name: parameter.choices for name, parameter in config.space.items()}
        return _GridSampler(axes, seed=spec.seed)
    return WindowedTPESampler(
        n_startup_trials=config.startup_trials,
        multivariate=True,
        group=any(parameter.when for parameter in config.space.values()),
        constant_liar=True,
        seed=seed,
    )
