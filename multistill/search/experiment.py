"""One Tune experiment: this driver's part of a study, from its first trial to its last."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from multistill.search.recorder import Recorder
from multistill.search.request import Request
from multistill.search.searcher import StudySearch
from multistill.search.storage import (
    JOINED,
    NotPickled,
    discard_trial,
    open_storage,
    trial_folder,
    trial_key,
    unfinished_trials,
)
from multistill.search.trial import Objective, Trial
from multistill.tracking.logger import RunLogger

ROUND, ROUND_PER_SLOT = 400, 20
"""Tune keeps every trial of an experiment, some 25 kB each, until the experiment ends. So a
long search is several experiments on one study, each long enough that starting it (seconds)
and running dry at its end cost next to nothing."""

ROUND_OF = "round-"
"""Attributes of the study that begin so say what a round cost: a later process of the same
search reads there what the earlier ones spent."""

_NESTED_BYTES = 100 * 2**20

_ENVIRONMENT = {
    # Tune's result.json, progress.csv and TensorBoard files per trial: we record ourselves.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune leaves its handler in place when it ends, and its stop forgets which trials ran.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its snapshots grow with the trials; the study is the state.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_trials(
    request: Request,
    out: Path,
    logger: RunLogger,
    objective: Objective | None,
    *,
    driver: str,
    limit: int,
    gpus: float,
) -> Recorder:
    """Hand out trials of the study until none is left for this driver, or the round is full.

    Args:
        driver: name of this driver's lease.
        limit: trials at a time.
        gpus: of each trial.
    Raises:
        KeyboardInterrupt: after Ctrl-C; trials in hand keep their state to be continued.
    """
    started = time.monotonic()
    nested = request.config.workers_per_trial > 1
    interrupt = Interrupt(logger)
    scheduler = _scheduler(request)
    searcher = StudySearch(
        request,
        out,
        open_storage(out, request.config.storage),
        target=request.config.trials,
        limit=limit,
        most=max(ROUND, ROUND_PER_SLOT * limit),
        driver=driver,
        stopping=lambda: interrupt.asked,
        on_continue=lambda trial_id, trial: _replay(scheduler, trial_id, trial),
    )
    unfinished_trials(out, searcher.study)  # an earlier driver's leavings go
    values, done = [], 0
    for trial in searcher.study.get_trials(deepcopy=False):
        if trial.values:
            _replay(scheduler, trial_key(trial.number), trial)
            values.append(trial.values[0])
        done += trial.state.is_finished()
    ended: list[int] = []  # folders that workers may still write to for an epoch

    def clear(number: int) -> None:
        shutil.rmtree(trial_folder(out, number), ignore_errors=True)

    def clear_soon(number: int) -> None:
        ended[:] = [early for early in ended if not discard_trial(out, early)] + [number]

    recorder = Recorder(
        logger,
        searcher,
        done,
        request.config.trials,
        best=(max if request.config.mode == "max" else min)(values, default=None),
        ended=clear_soon if nested else clear,
    )
    scratch = out / "tune" / uuid.uuid4().hex[:8]
    scratch.mkdir(parents=True)
    resources = {"cpu": request.config.cpus_per_trial, "gpu": gpus}
    if nested:  # its workers hold all; Tune reserves nothing but a process
        resources = {"cpu": 0, "memory": _NESTED_BYTES}
    try:
        with interrupt, _quiet():
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(Trial, objective=objective), resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,
                    # Workers of a trial that was stopped must end now, not with the next one.
                    reuse_actors=not nested,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    stop=_Stopper(interrupt, searcher),
                    failure_config=tune.FailureConfig(max_failures=request.config.max_failures),
                    # The trial keeps its own checkpoints, where a new driver finds them.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[recorder],
                    verbose=0,
                    log_to_file=False,
                ),
            )
            tuner.fit()
    finally:
        recorder.interrupted()
        for number in ended:
            clear(number)
        shutil.rmtree(scratch, ignore_errors=True)
        if not driver.startswith(JOINED):
            figures = {
                "seconds": round(time.monotonic() - started, 3),
                "training": round(recorder.training_seconds, 3),
                "slots": limit,
                "waits": [round(seconds, 3) for seconds in recorder.waits],
            }
            searcher.study.set_user_attr(f"{ROUND_OF}{driver}", figures)
    if interrupt.asked:
        logger.info("the search stopped; the same command, or `search resume`, goes on with it")
        raise KeyboardInterrupt
    return recorder


class Interrupt:
    """Ctrl-C once: no new trials, those in hand stop after their epoch. Twice: stop now."""

    def __init__(self, logger: RunLogger) -> None:
        self.asked = False
        self._logger = logger
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            # Tune sets SIGUSR1 and never puts it back.
            for number in (signal.SIGINT, signal.SIGUSR1):
                self._before[number] = signal.getsignal(number)
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._logger.info(
            "stopping: trials in hand end their epoch and can be continued; "
            "press Ctrl-C again to stop now"
        )


class _Stopper(NotPickled, tune.Stopper):
    """Ends the experiment on Ctrl-C, or when every trial fails."""

    def __init__(self, interrupt: Interrupt, searcher: StudySearch) -> None:
        self._interrupt, self._searcher = interrupt, searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._interrupt.asked or self._searcher.should_abort


def _scheduler(request: Request) -> ASHAScheduler:
    """Asynchronous successive halving (Li 2018) by epochs, so that it survives a restart."""
    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=request.config.mode,
        max_t=request.epochs,
        grace_period=min(request.config.grace_epochs, request.epochs),
        reduction_factor=request.config.reduction,
        brackets=1,
    )


def _replay(scheduler: ASHAScheduler, name: str, trial: FrozenTrial) -> None:
    """Tell the scheduler what an earlier driver saw, so that its rungs are not empty."""
    stand_in = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, stand_in)
    for epoch, value in sorted(trial.intermediate_values.items()):
        scheduler.on_trial_result(None, stand_in, {"epoch": epoch, "value": value})


def _name(trial: Any) -> str:
    return trial_key(trial.config["number"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune without its tables, files and advice; progress is ours to show."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
