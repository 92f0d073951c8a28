"""Everything private or undocumented of Ray Tune and Optuna that the search depends on.

A release of either may change these names without notice, so they are used in this module
only. `tests/search/test_tune_internals.py` checks each of them against the installed
versions without starting Ray: after an upgrade, run that file first.
"""

from __future__ import annotations

import bisect
import heapq
import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.exceptions import RayActorError
from ray.tune.schedulers import TrialScheduler

ENVIRONMENT = {
    # Tune adds callbacks that write result.json, progress.csv and TensorBoard files per trial;
    # the search logs its trials itself.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune leaves its SIGINT handler installed, and loses track of the trials that were running
    # when the handler stops the experiment; `experiment.Interrupt` takes its place.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Seconds between snapshots of the experiment: they grow with the number of trials, and
    # nothing reads them, since the study is the state.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # The old output engine prints nothing with `verbose=0`.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Trials stay out of Tune's own folder, which is removed.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Variables that Ray reads in the driver; most are documented in its source code only."""

_BEST, _LATEST = 100, 900
_LOGGERS = ("ray.tune", "ray.train", "ray.air")
_DIED = ("ActorDiedError", "died unexpectedly", "actor died")
_LOST = "may or may not have been executed on the actor"  # until Ray knows that its node is dead
_RAISED_IN_SETUP = "creation task"  # for Ray, such an actor died, too
_ACTOR_ERROR = "ray.exceptions.RayActorError: "
_NO_MESSAGE = "its process exited without an error message"


class NotPickled:
    """Base of objects that Tune pickles into its own folder, where nothing reads them.

    Schedulers, searchers, callbacks and stoppers are part of Tune's snapshots; these hold
    locks, loggers and database connections, which cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextmanager
def private_storage() -> Iterator[Path]:
    """A folder for Tune's own files, on this machine and readable by this user only.

    Tune writes pickles there and, when an experiment ends, unpickles the error of each failed
    trial from it (`Trial.get_pickled_error`): in the workspace, whoever may write to that could
    run code in the driver. Nodes need not see it, since a trial keeps its own checkpoints.
    """
    with tempfile.TemporaryDirectory(prefix="multistill-tune-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Run Tune without its tables, files, log messages and warnings, and without side effects
    on this process."""
    with ExitStack() as stack:
        stack.enter_context(_environment())
        stack.enter_context(_sigusr1_restored())
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _sigusr1_restored() -> Iterator[None]:
    """`tune.run` sets a handler of SIGUSR1 in the main thread and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def replay_trial(scheduler: TrialScheduler, trial_id: str, trial: FrozenTrial) -> None:
    """Report the values of a trial of an earlier driver to a new scheduler.

    Without them its rungs would be empty and it would stop trials too late. Tune restores a
    scheduler from its own snapshots only. ASHA uses nothing of a trial but its id, and does
    not use the controller.
    """
    placeholder: Any = SimpleNamespace(trial_id=trial_id)
    controller: Any = None
    scheduler.on_trial_add(controller, placeholder)
    for epoch, value in sorted(trial.intermediate_values.items()):
        scheduler.on_trial_result(controller, placeholder, {"epoch": epoch, "value": value})


def reopen_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A trial that another process asked for, to report and tell its values here.

    Optuna has no public way to continue a running trial: the constructor of `optuna.Trial`
    requires the storage's id of the trial, which is private in `FrozenTrial`.
    """
    return optuna.Trial(study, trial._trial_id)


def has_trial(study: optuna.Study, number: int) -> bool:
    """Whether the study has a trial of that number, without reading its trials.

    Optuna's public `get_trials` goes through all of them.
    """
    try:
        study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return False
    return True


def read_only_waiting(study: optuna.Study) -> None:
    """Let `study.ask` read the waiting trials of a database to know whether one waits.

    Optuna reads all that are running, for every trial that it creates.
    """
    database = getattr(study._storage, "_backend", None)
    if not isinstance(
        database, optuna.storages.RDBStorage
    ):  # a journal, whose trials are in memory
        return
    pop, waiting = study._pop_waiting_trial_id, (TrialState.WAITING,)

    def pop_if_any() -> int | None:
        return pop() if database.get_all_trials(study._study_id, False, waiting) else None

    study._pop_waiting_trial_id = pop_if_any


class WindowedTPESampler(optuna.samplers.TPESampler):
    """TPE whose cost hardly grows with the study: it models the best and the latest trials.

    Optuna models every trial for every suggestion. Of them, "good" are 25 at most (Optuna's
    `default_gamma`), and the weights of the others fall with age; so the `_BEST` best and
    the `_LATEST` latest finished trials, and all running ones, hold nearly all that it knows.
    A sampler is for one study.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._early = _Early()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return super().sample_relative(_Window.of(study, self._early), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        window = _Window.of(study, self._early)
        return super().sample_independent(window, trial, param_name, param_distribution)


class _Window(optuna.Study):
    """A study that shows a sampler the part of its trials that matters most."""

    _early: _Early

    @classmethod
    def of(cls, study: optuna.Study, early: _Early) -> _Window:
        window = cls.__new__(cls)
        window.__dict__.update(study.__dict__, _early=early)
        return window

    def _get_trials(
        self, deepcopy: bool = True, states: Any = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, states, use_cache)
        if len(trials) <= _BEST + _LATEST:
            return trials
        late = trials[-_LATEST:]
        kept = {trial.number: trial for trial in self._early.of(trials, self.directions) + late}
        return [kept[number] for number in sorted(kept)]


class _Early:
    """The trials before the latest that a sampler models: the best, and those that run.

    Each is looked at once, when it is no longer among the latest, and again while it runs.
    """

    def __init__(self) -> None:
        self._next = 0
        self._running: list[int] = []
        self._best: list[list[tuple[float, int, FrozenTrial]]] = []  # a heap per objective

    def of(self, trials: list[FrozenTrial], directions: list[StudyDirection]) -> list[FrozenTrial]:
        """Of `trials`, in the order of their numbers."""
        if not self._best:
            self._best = [[] for _ in directions]
        begin, end = _position(trials, self._next), len(trials) - _LATEST
        looked_at = trials[begin:end]
        for number in self._running:
            index = _position(trials, number)
            looked_at += [trial for trial in trials[index : index + 1] if trial.number == number]
        self._next = max(self._next, trials[end].number)
        running = [trial for trial in looked_at if trial.state == TrialState.RUNNING]
        self._running = [trial.number for trial in running]
        for trial in looked_at:
            if trial.state == TrialState.COMPLETE:
                self._add(trial, directions)
        return [trial for heap in self._best for _, _, trial in heap] + running

    def _add(self, trial: FrozenTrial, directions: list[StudyDirection]) -> None:
        for heap, value, direction in zip(self._best, trial.values, directions, strict=True):
            score = value if direction == StudyDirection.MAXIMIZE else -value
            push = heapq.heappush if len(heap) < _BEST else heapq.heappushpop
            push(heap, (score, -trial.number, trial))


def _position(trials: list[FrozenTrial], number: int) -> int:
    """Of the first trial with that number or a higher one."""
    return bisect.bisect_left(trials, number, key=lambda trial: trial.number)


def preempted() -> RayActorError:
    """An error for a trainable to raise whose node goes away: Tune starts the trial again.

    Tune counts it among the trial's failures unless it is that of an actor that was preempted.
    """
    return RayActorError(error_msg="its node is about to go away", preempted=True)


def failure_reason(trial: Any) -> str:
    """The last line of the error that Tune wrote to the error file of a `ray.tune` trial.

    Callbacks do not receive the exception. `Trial` is a developer API of Ray; Tune appends
    every failure of a trial to the file, under a line that begins with `Failure #`.
    """
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2]
    except (OSError, TypeError):  # None, where Tune wrote no file
        return _NO_MESSAGE
    if any(sign in text for sign in _DIED) and _RAISED_IN_SETUP not in text:
        return "its process died (killed, or out of memory)"
    if _LOST in text:
        return "its process or its node was lost"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix(_ACTOR_ERROR)[:500] if lines else _NO_MESSAGE


def drop_statistics(trial: Any) -> None:
    """Free Tune's running statistics of every metric of a finished `ray.tune` trial.

    They take 30 kB per trial until the experiment ends, and nothing reads them.
    """
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
