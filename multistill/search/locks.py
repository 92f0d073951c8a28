"""Locks and leases of the drivers that share one search.

    <out>/study.lock       held while a trial is handed out
    <out>/drivers/<name>   held for as long as the driver of that name lives

The locks are file locks of the kernel: a killed process holds none. A trial that is RUNNING
in the study while its driver's lock is free is therefore orphaned, and the first driver that
sees it continues it. No clocks are compared.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

JOINED = "joined-"
"""Prefix in the name of a driver that joined a search which another driver started."""

DRIVER_EXIT_TIMEOUT_S = 60.0

_STUDY_LOCK = "study.lock"
_DRIVERS = "drivers"
_NAME = re.compile(rf"(?:{JOINED})?[0-9a-f]{{12}}")


class StudyLock:
    """Exclusive access to the study, or to another file of the search, on a shared file system.

    Has the interface of the locks that Optuna's journal accepts.
    """

    def __init__(self, folder: Path, name: str = _STUDY_LOCK) -> None:
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


class DriverLease:
    """A lock that a driver holds while it lives; every trial that it runs carries its name.

    Args:
        joined: another driver started the search.
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


def is_alive(folder: Path, driver: str) -> bool:
    """Whether the driver of that name still runs.

    Call it under the `StudyLock` only: the check acquires the driver's lock for a moment, and
    a concurrent check would mistake that for a living driver.
    """
    # The name comes from the study: another one than a lease's could lead out of the folder.
    if not _NAME.fullmatch(str(driver)):
        return False
    path = folder / _DRIVERS / driver
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    lock.release()
    return False


def living_drivers(folder: Path) -> set[str]:
    """Names of the drivers that run; call it under the `StudyLock` only, as `is_alive`."""
    names = {path.name for path in (folder / _DRIVERS).glob("*")}
    return {name for name in names if is_alive(folder, name)}


@contextmanager
def wait_for_other_drivers(folder: Path) -> Iterator[None]:
    """Hold the study's lock once no other driver runs, since the folder is about to be renamed.

    Drivers without trials are about to exit; after `DRIVER_EXIT_TIMEOUT_S` they are ignored.
    A driver that joins meanwhile waits for the lock, finds the results and exits. Call it
    without holding a lease.
    """
    deadline = time.monotonic() + DRIVER_EXIT_TIMEOUT_S
    while True:
        with StudyLock(folder):
            if not living_drivers(folder) or time.monotonic() >= deadline:
                yield
                return
        time.sleep(0.2)
