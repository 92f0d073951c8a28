"""Everything private or undocumented of Ray Tune and Optuna that the search depends on.

A release of either may change these names without notice, so they are used here and in
`long_studies` only. `tests/search/test_tune_internals.py` and `test_long_searches.py` check each
of them against the installed versions without starting Ray: after an upgrade, run these first.
"""

from __future__ import annotations

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
from optuna.trial import FrozenTrial
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
