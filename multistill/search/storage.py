"""The study's state on disk: an Optuna study that several drivers share and any may lose.

    <out>/study.log        Optuna's journal: one JSON line per event, appended and flushed
    <out>/study.lock       held while a trial is handed out (`study.log.lock`: a line appended)
    <out>/drivers/<id>     held for as long as the driver lives
    <out>/trials/<number>/ checkpoints of a trial in hand, removed when it ends; `trial.lock`
                           in it is held by the process that runs it

The locks are the kernel's: a killed process holds none. So a trial that is RUNNING in the
study and whose driver's lock is free was orphaned, and whoever sees it first continues it.
No clocks are compared. Nothing here is a pickle.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from multistill.errors import UsageError

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.log"
_LOCK = "study.lock"
_DRIVERS = "drivers"
_TRIALS = "trials"
_TRIAL_LOCK = "trial.lock"

LEAVING_SECONDS = 60.0


class StudyLock:
    """Exclusive access to the study (or its journal), over all processes of the file system."""

    def __init__(self, folder: Path, name: str = _LOCK) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / name)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


JOINED = "joined-"


class DriverLease:
    """The sign that a driver lives. Its name stands in every trial that it runs.

    Args:
        joined: the driver helps with a search that another one started.
    """

    def __init__(self, folder: Path, *, joined: bool = False) -> None:
        self.name = (JOINED if joined else "") + uuid.uuid4().hex[:12]
        self._path = folder / _DRIVERS / self.name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path)

    def __enter__(self) -> DriverLease:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        self._lock.release()


def alive(folder: Path, driver: str) -> bool:
    """Whether the driver of that name still runs. Ask under the `StudyLock` only: the question
    holds the driver's lock for a moment, and a second asker would take that for life."""
    path = folder / _DRIVERS / driver
    if not driver or not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    lock.release()
    return False


def drivers_alive(folder: Path) -> bool:
    """Whether any driver holds a lease. Call it under the `StudyLock`, holding no lease."""
    return any(alive(folder, path.name) for path in (folder / _DRIVERS).glob("*"))


@contextmanager
def wait_for_other_drivers(folder: Path) -> Iterator[None]:
    """Held once the other drivers are gone: the folder must not move under their feet.

    Those without trials are about to end. One that joins now waits, and then finds the
    results and leaves.
    """
    deadline = time.monotonic() + LEAVING_SECONDS
    while True:
        with StudyLock(folder):
            if not drivers_alive(folder) or time.monotonic() >= deadline:
                yield
                return
        time.sleep(0.2)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / _TRIALS / f"{number:04d}"


def trial_lock(folder: Path, number: int) -> FileLock:
    """Held by the process that writes to the trial's folder."""
    return FileLock(trial_folder(folder, number) / _TRIAL_LOCK)


def discard_trial(folder: Path, number: int) -> bool:
    """Remove the folder of an ended trial, unless a process still writes to it.

    Returns:
        whether it is gone.
    """
    place = trial_folder(folder, number)
    if place.exists():
        lock = trial_lock(folder, number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            shutil.rmtree(place, ignore_errors=True)
        finally:
            lock.release()
    return True


def unfinished_trials(folder: Path, study: optuna.Study) -> list[int]:
    """Trials with a folder, once the folders of ended ones are removed: a driver that is
    killed between a trial's end and the removal leaves its checkpoints behind."""
    numbers = sorted(int(path.name) for path in (folder / _TRIALS).glob("[0-9]*"))
    if not numbers:
        return []
    trials = study.get_trials(deepcopy=False)
    ended = {trial.number for trial in trials if trial.state.is_finished()}
    return [n for n in numbers if n not in ended or not discard_trial(folder, n)]


def trial_key(number: int) -> str:
    """Name of a trial in every record: the same after a restart."""
    return f"trial-{number:04d}"


def open_storage(folder: Path, url: str | None) -> optuna.storages.BaseStorage:
    """The storage of the study.

    Args:
        url: a database for Optuna's RDBStorage; None: the journal file in `folder`.
    Raises:
        UsageError: the database cannot be reached.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        guard = StudyLock(folder, f"{JOURNAL}.lock")
        with guard:
            _drop_torn_line(folder / JOURNAL)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock_obj=guard))
    problem = storage_problem(url)
    if problem:
        raise UsageError(problem)
    try:
        return RDBStorage(url, skip_compatibility_check=False)
    except Exception as error:  # drivers raise whatever they like
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UsageError(
            f"search.storage: `{url}` cannot be reached "
            f"({reason[0] if reason else type(error).__name__}); check the address and that the "
            "server runs, or remove the key to keep the study in the workspace"
        ) from error


def storage_problem(url: str | None) -> str | None:
    """What is wrong with the URL as written, or None."""
    if url is not None and "://" not in url:
        return f"search.storage: `{url}` is not an address such as postgresql://user@host/name"
    return None


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    directions: list[str],
    sampler: optuna.samplers.BaseSampler | None = None,
) -> optuna.Study:
    """The study of that name, made if there is none."""
    import optuna

    with quiet_optuna():
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=directions,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's messages and its notes on experimental options."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line that has no end: its writer died, so it was never acknowledged.

    Optuna would glue the next event to it and then refuse the whole file.
    """
    if not journal.exists():
        return
    with journal.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return
        keep, position = 0, size
        while position and not keep:
            start = max(0, position - 65536)
            stream.seek(start)
            block = stream.read(position - start)
            keep = start + block.rfind(b"\n") + 1 if b"\n" in block else 0
            position = start
        stream.truncate(keep)


def attribute(trial: Any, name: str) -> dict[str, Any]:
    """A JSON attribute of a trial, empty if it has none."""
    value = trial.user_attrs.get(name)
    return dict(value) if isinstance(value, dict) else {}


class NotPickled:
    """Objects that Tune pickles into its scratch folder without anyone reading it back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
