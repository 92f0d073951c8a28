"""One Tune experiment: the trials that a driver runs before it starts the next experiment."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from multistill.cluster.handback import Request, on_sigterm
from multistill.cluster.waiting import Waiting
from multistill.full_disk import FullDiskError, writing
from multistill.search.locks import JOINED
from multistill.search.searcher import SharedStudySearcher
from multistill.search.spec import SearchSpec
from multistill.search.storage import EXPERIMENT
from multistill.search.trainable import Objective, StudentTrainable
from multistill.search.trial_folders import (
    discard_trial,
    trial_folder,
    trial_key,
    unfinished_trials,
)
from multistill.search.trial_logger import TrialLogger
from multistill.search.tune_internals import (
    NotPickled,
    private_storage,
    quiet_tune,
    replay_trial,
)
from multistill.tracking.logger import RunLogger

MAX_TRIALS, MAX_TRIALS_PER_SLOT = 400, 20
"""Tune keeps every trial of an experiment, some 25 kB each, until the experiment ends. A long
search is therefore several experiments on one study, each long enough that its start (seconds)
and the idle slots at its end cost next to nothing."""

_NESTED_BYTES = 100 * 2**20


@dataclass(frozen=True)
class ExperimentResult:
    """How an experiment ended.

    Attributes:
        trials_ended: trials that ended in it.
        concurrency: trials that it ran at the same time.
        should_abort: trials failed one after another.
        exhausted: it handed out its maximum of trials, so the study may need another one.
    """

    trials_ended: int
    concurrency: int
    should_abort: bool
    exhausted: bool


def run_experiment(
    spec: SearchSpec,
    out: Path,
    logger: RunLogger,
    objective: Objective | None,
    *,
    driver: str,
    concurrency: int,
    gpus: float,
) -> ExperimentResult:
    """Run trials until none is left for this driver or the experiment has its maximum.

    Args:
        driver: name of this driver's lease.
        concurrency: trials that run at the same time.
        gpus: of each trial.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; running trials keep their state to be continued.
        FullDiskError: a trial or the study could not be written; trials without an end are
            continued by the next call.
        MultistillError: the study's database was away for too long; likewise.
    """
    started = time.monotonic()
    request = Request(driver)
    interrupt = Interrupt(logger, request)
    scheduler = _scheduler(spec)
    searcher = SharedStudySearcher(
        spec,
        out,
        concurrency=concurrency,
        max_trials=max(MAX_TRIALS, MAX_TRIALS_PER_SLOT * concurrency),
        driver=driver,
        stop_requested=lambda: interrupt.requested,
        on_continue=lambda trial_id, trial: replay_trial(scheduler, trial_id, trial),
    )
    unfinished_trials(out, searcher.study)  # removes the leftovers of an earlier driver
    folders = _EndedFolders(out, wait_for_workers=spec.config.workers_per_trial > 1)
    trial_logger = _trial_logger(logger, searcher, spec, folders, gpus)
    for trial in _valued(searcher.study):
        replay_trial(scheduler, trial_key(trial.number), trial)
    try:
        with private_storage() as storage, interrupt, quiet_tune():
            tune.Tuner(
                _trainable(spec, objective, gpus),
                tune_config=_tune_config(spec, searcher, scheduler),
                run_config=_run_config(spec, storage, _Stopper(interrupt, searcher), trial_logger),
            ).fit()
    finally:
        request.clear()
        trial_logger.close_running()
        folders.remove_all()
    # Not above: after a second Ctrl-C, nothing waits for a database.
    if not driver.startswith(JOINED):
        took = {
            "seconds": round(time.monotonic() - started, 3),
            "training": round(trial_logger.training_seconds, 3),
            "slots": concurrency,
            "waits": [round(seconds, 3) for seconds in trial_logger.start_delays],
        }
        searcher.add_attribute(f"{EXPERIMENT}{driver}", took)
    if interrupt.requested:
        logger.info("the search stopped; the same command, or `search resume`, continues it")
        raise KeyboardInterrupt
    if searcher.full_disk is not None:
        raise FullDiskError(searcher.full_disk)
    if searcher.storage_error is not None:
        with writing(out, "finished epochs"):
            raise searcher.storage_error
    return ExperimentResult(
        trial_logger.trials_ended, concurrency, searcher.should_abort, searcher.exhausted
    )


class Interrupt:
    """Handles Ctrl-C and SIGTERM: the first starts no new trials and stops running ones, after
    their epoch on Ctrl-C and after their step on SIGTERM; the second stops immediately."""

    def __init__(self, logger: RunLogger, request: Request) -> None:
        self.requested = False
        self._logger, self._request = logger, request
        self._stack = ExitStack()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._on_signal)
            self._stack.callback(signal.signal, signal.SIGINT, before)
            self._stack.enter_context(on_sigterm(self._on_sigterm))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _on_sigterm(self) -> None:
        self.requested = True  # before a trial hands back, or Tune would give it another epoch
        self._request.send("driver")
        self._logger.info(
            "stopping: running trials save after their step and can be continued; "
            "another SIGTERM stops at once"
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._logger.info(
            "stopping: running trials finish their epoch and can be continued; "
            "press Ctrl-C again to stop now"
        )


class _Stopper(NotPickled, tune.Stopper):
    """Ends the experiment on Ctrl-C, on a full disk, when the storage of the study fails, or when
    trials fail one after another."""

    def __init__(self, interrupt: Interrupt, searcher: SharedStudySearcher) -> None:
        self._interrupt, self._searcher = interrupt, searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return (
            self._interrupt.requested
            or self._searcher.full_disk is not None
            or self._searcher.storage_error is not None
            or self._searcher.should_abort
        )


class _EndedFolders:
    """Removes the folders of ended trials.

    Args:
        wait_for_workers: the workers of an ended trial may still write to its folder until
            their epoch ends, so it is removed later.
    """

    def __init__(self, out: Path, *, wait_for_workers: bool) -> None:
        self._out, self._wait_for_workers = out, wait_for_workers
        self._pending: list[int] = []

    def remove(self, number: int) -> None:
        if not self._wait_for_workers:
            shutil.rmtree(trial_folder(self._out, number), ignore_errors=True)
            return
        self._pending = [n for n in self._pending if not discard_trial(self._out, n)]
        self._pending.append(number)

    def remove_all(self) -> None:
        for number in self._pending:
            shutil.rmtree(trial_folder(self._out, number), ignore_errors=True)


def _trial_logger(
    logger: RunLogger,
    searcher: SharedStudySearcher,
    spec: SearchSpec,
    folders: _EndedFolders,
    gpus: float,
) -> TrialLogger:
    config = spec.config
    need = {"CPU": float(config.cpus_per_trial), **({"GPU": gpus} if gpus else {})}
    best = max if spec.config.mode == "max" else min
    return TrialLogger(
        logger,
        searcher,
        Waiting(logger.info, "the search", "trial", config.workers_per_trial, need),
        finished=sum(
            trial.state.is_finished() for trial in searcher.study.get_trials(deepcopy=False)
        ),
        total=config.trials,
        epochs=spec.epochs,
        best=best((trial.values[0] for trial in _valued(searcher.study)), default=None),
        on_end=folders.remove,
    )


def _valued(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have a value."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.values]


def _trainable(spec: SearchSpec, objective: Objective | None, gpus: float) -> Any:
    resources = {"cpu": spec.config.cpus_per_trial, "gpu": gpus}
    if spec.config.workers_per_trial > 1:
        # The workers reserve everything; Tune reserves no more than a process.
        resources = {"cpu": 0, "memory": _NESTED_BYTES}
    trainable = tune.with_parameters(StudentTrainable, objective=objective)
    return tune.with_resources(trainable, resources)


def _tune_config(
    spec: SearchSpec, searcher: SharedStudySearcher, scheduler: ASHAScheduler
) -> tune.TuneConfig:
    return tune.TuneConfig(
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=-1,
        # Workers of a stopped trial must end now, not with the next trial.
        reuse_actors=spec.config.workers_per_trial == 1,
        trial_name_creator=_trial_name,
        trial_dirname_creator=_trial_name,
    )


def _run_config(
    spec: SearchSpec, storage: Path, stopper: tune.Stopper, trial_logger: TrialLogger
) -> tune.RunConfig:
    return tune.RunConfig(
        name="trials",
        storage_path=str(storage),
        stop=stopper,
        failure_config=tune.FailureConfig(max_failures=spec.config.max_failures),
        # A trial keeps its own checkpoints, where another driver finds them.
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[trial_logger],
        verbose=0,
        log_to_file=False,
    )


def _scheduler(spec: SearchSpec) -> ASHAScheduler:
    """Asynchronous successive halving (Li 2018) by epochs, which a restart does not reset."""
    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=spec.config.mode,
        max_t=spec.epochs,
        grace_period=min(spec.config.grace_epochs, spec.epochs),
        reduction_factor=spec.config.reduction,
        brackets=1,
    )


def _trial_name(trial: Any) -> str:
    return trial_key(trial.config["number"])
