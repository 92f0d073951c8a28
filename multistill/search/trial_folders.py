"""Folders with the checkpoints of running trials, and the names of trials in records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import optuna

_TRIALS = "trials"
_TRIAL_LOCK = "trial.lock"


def trial_key(number: int) -> str:
    """Name of a trial within its study; the same after a restart."""
    return f"trial-{number:04d}"


def run_key(number: int, suffix: str) -> str:
    """Key of a trial's run, below which a restart continues it.

    Args:
        suffix: of the study (`storage.run_suffix`).
    """
    return f"{trial_key(number)}-{suffix}"


def trial_folder(folder: Path, number: int) -> Path:
    """Folder of the trial's checkpoints, in the folder of its search."""
    return folder / _TRIALS / f"{number:04d}"


def trial_lock(folder: Path, number: int) -> FileLock:
    """Lock that is held by the process that writes to the trial's folder."""
    return FileLock(trial_folder(folder, number) / _TRIAL_LOCK)


def discard_trial(folder: Path, number: int) -> bool:
    """Remove the folder of a finished trial, unless a process still writes to it.

    Returns:
        whether the folder no longer exists.
    """
    path = trial_folder(folder, number)
    if path.exists():
        lock = trial_lock(folder, number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            lock.release()
    return True


def unfinished_trials(folder: Path, study: optuna.Study) -> list[int]:
    """Remove the folders of finished trials and list the trials that still have one.

    A driver that is killed after a trial has finished and before its folder is removed leaves
    the checkpoints behind; so does a trial that a damaged journal has lost.
    """
    numbers = sorted(int(path.name) for path in (folder / _TRIALS).glob("[0-9]*"))
    if not numbers:
        return []
    trials = study.get_trials(deepcopy=False)
    open_trials = {trial.number for trial in trials if not trial.state.is_finished()}
    return [n for n in numbers if n in open_trials or not discard_trial(folder, n)]
