"""What each run tells the others in its workspace: who runs it, where, and how far it is.

    <workspace>/drivers/<fingerprint>-<id>/lock          held for as long as the process lives
    <workspace>/drivers/<fingerprint>-<id>/status.json   replaced every few seconds
    <workspace>/drivers/<fingerprint>-<id>/job.yaml      the resolved job file

The lock is the kernel's, so a killed process holds none, and no clocks are compared. The folder
of the last process of a job that worked stays, so that its end and its addresses can be shown.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from multistill.config import JobConfig
from multistill.damaged import reading
from multistill.errors import MultistillError
from multistill.tracking.logger import NullLogger
from multistill.tracking.owner import account_at_host, submitter
from multistill.tracking.redaction import redact
from multistill.workspace import Workspace, is_held, read_json, write_atomic, write_json

FOLDER = "drivers"
REGISTRATION = "drivers"
"""Lock of the workspace, held while a run registers and while `gc` decides what goes: a run
that starts sees either the artifacts that stay, or the workspace without the others."""

LINKS = {"mlflow": "mlflow", "mlflow_ui": "to view", "ray_dashboard": "ray"}
"""Where people look at a run, with a title for the terminal."""

KEYS = {
    *("job", "variant", "owner", "host", "node", "pid", "started", "updated", "submission_id"),
    *("stage", "stages", "progress", "seconds_left", "links", "worked", "ended", "reason"),
}
"""Of a status.json that is read; one of another version is left out."""

LOCK, STATUS, JOB = "lock", "status.json", "job.yaml"
WRITE_SECONDS = 3.0
HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True)
class DriverStatus:
    """What a run last said of itself.

    Attributes:
        folder: of the driver.
        alive: its process lives.
        content: `job`, `variant`, `owner` and `host` (who runs it; of a submitted job, who
            submitted it from where), `node` and `pid` (of the process), `started`, `updated`
            (ISO), `submission_id`, `stage`, `stages` (name, kind and fingerprint of those it
            found or made), `progress` (`name`, `done`, `total`, `unit`,
            `running`), `seconds_left` (of the
            stage), `links` (`mlflow`, `mlflow_ui`, `ray_dashboard`), `worked`, `ended` (None,
            `finished`, `interrupted` or `failed`) and `reason`.
    """

    folder: Path
    alive: bool
    content: Mapping[str, Any]

    @property
    def variant(self) -> str:
        return str(self.content["variant"])

    @property
    def job_file(self) -> Path:
        return self.folder / JOB

    @property
    def end(self) -> str | None:
        """`finished`, `failed`, `interrupted` or `killed`; None while it runs."""
        return None if self.alive else self.content["ended"] or "killed"


def read_drivers(workspace: Path) -> list[DriverStatus]:
    """Every driver that the workspace knows, live ones first, then the last that started first."""
    found = []
    for file in (workspace / FOLDER).glob(f"[!.]*/{STATUS}"):
        alive = is_held(file.parent / LOCK)  # before the content: its end may be written between
        try:
            with reading(file):
                content = _checked(read_json(file))
        except (OSError, MultistillError):
            continue
        found.append(DriverStatus(file.parent, alive, content))
    return sorted(found, key=lambda d: (d.alive, str(d.content["started"])), reverse=True)


def _checked(content: Any) -> dict[str, Any]:
    """A status of this version, with values as they are written; raises what others raise."""
    if content["format"] != 1 or not content.keys() >= KEYS:
        raise ValueError("it is of another version")
    datetime.fromisoformat(content["started"])
    texts = [content[name] for name in ("job", "variant", "owner", "host", "node")]
    texts += [
        stage[name] for stage in content["stages"] for name in ("name", "kind", "fingerprint")
    ]
    or_none = [content[name] for name in ("submission_id", "stage", "ended", "reason")]
    or_none += [content["links"][name] for name in LINKS]
    numbers = [] if content["seconds_left"] is None else [content["seconds_left"]]
    if (progress := content["progress"]) is not None:
        texts += [progress["name"], progress["unit"], progress["running"]]
        numbers += [progress["done"], progress["total"]]
    if not all(isinstance(text, str) for text in texts + [t for t in or_none if t is not None]):
        raise TypeError("a name is no text")
    if not all(isinstance(number, int | float) and abs(number) < 1e12 for number in numbers):
        raise TypeError("a number is none")
    return dict(content)


def latest_by_variant(drivers: list[DriverStatus]) -> dict[str, DriverStatus]:
    """The driver to show of each job: a live one, else the last."""
    return {driver.variant: driver for driver in reversed(drivers)}


@dataclass
class _Progress:
    name: str
    unit: str
    first: float
    since: float


class Driver:
    """Registers this process in a workspace for the duration of the block.

    Nothing here ends a run: what cannot be written is left out.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        workspace: Workspace,
        job: JobConfig,
        variant: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        account, _, host = (submitter() or account_at_host()).partition("@")
        now = _now()
        self._workspace, self._job, self._clock = workspace, job, clock
        self.folder = workspace.root / FOLDER / f"{variant}-{uuid.uuid4().hex[:12]}"
        self._content: dict[str, Any] = {
            "format": 1,
            "job": job.name,
            "variant": variant,
            "owner": account,
            "host": host,
            "node": account_at_host().partition("@")[2],
            "pid": os.getpid(),
            "started": now,
            "updated": now,
            "submission_id": os.environ.get("RAY_JOB_SUBMISSION_ID") or None,
            "stage": None,
            "stages": [],
            "progress": None,
            "seconds_left": None,
            "links": dict.fromkeys(LINKS),
            "worked": False,
            "ended": None,
            "reason": None,
        }
        self._progress: _Progress | None = None
        self._mutex = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="driver-status", daemon=True)
        self._lock: FileLock | None = None

    @property
    def links(self) -> dict[str, str | None]:
        return dict(self._content["links"])

    def __enter__(self) -> Driver:
        try:
            with self._workspace.lock(REGISTRATION):
                self._register()
        except OSError:  # the lock is another account's, who cannot delete our files either
            with suppress(OSError):
                self._register()
        self._thread.start()
        return self

    def _register(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            lock = FileLock(self.folder / LOCK)
            lock.acquire()
            self._lock = lock
        write_atomic(self.folder / JOB, self._job.to_yaml())
        write_json(self.folder / STATUS, self._content)

    def __exit__(self, kind: type[BaseException] | None, error: object, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=WRITE_SECONDS)
        ended, reason = "finished", None
        if kind is not None:
            ended = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            known = isinstance(error, MultistillError)
            reason = redact(str(error) if known else f"{kind.__name__}: {error}")[:500]
        self._change(ended=ended, reason=reason or None, seconds_left=None)
        with suppress(OSError):
            if self._content["worked"]:
                write_json(self.folder / STATUS, self._content)
            else:  # there was nothing to do, so the last one that worked is what others ask for
                shutil.rmtree(self.folder)
        if self._lock is not None:
            self._lock.release()

    def works(self) -> None:
        """This run makes something: from now on it is the one that is shown of its job."""
        self._change(worked=True)
        for driver in read_drivers(self._workspace.root):
            if driver.variant == self._content["variant"] and not driver.alive:
                shutil.rmtree(driver.folder, ignore_errors=True)

    def link(self, **links: str | None) -> None:
        """Note where people look: `mlflow`, `mlflow_ui`, `ray_dashboard`."""
        self._change(links={**self._content["links"], **links})

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._progress = None
        self._change(stage=name, progress=None, seconds_left=None)

    def artifact(self, stage: str, kind: str, fingerprint: str) -> None:
        """A stage is there: found or made."""
        entry = {"name": stage, "kind": kind, "fingerprint": fingerprint}
        self._change(stages=[*self._content["stages"], entry])

    def progress(
        self, name: str, done: float, total: float, unit: str, left: float | None, running: str
    ) -> None:
        """Progress within the stage.

        Args:
            name: of what progresses, e.g. the model that is trained.
            left: seconds, where it is known; else they are estimated from the pace so far.
            running: what runs at the same time, empty where that is one thing.
        """
        now, before = self._clock(), self._progress
        if before is None or (before.name, before.unit) != (name, unit) or done < before.first:
            before = self._progress = _Progress(name, unit, done, now)
        if left is None and done > before.first:
            left = (now - before.since) / (done - before.first) * max(total - done, 0)
        values = {"name": name, "done": done, "total": total, "unit": unit, "running": running}
        self._change(progress=values, seconds_left=None if left is None else round(left))

    def _change(self, **values: Any) -> None:
        with self._mutex:
            self._content = {**self._content, **values, "updated": _now()}
        self._wake.set()

    def _write_on(self) -> None:
        while not self._closing.is_set():
            if not self._wake.wait(HEARTBEAT_SECONDS):
                self._change()
            self._wake.clear()
            with suppress(OSError):
                write_json(self.folder / STATUS, self._content)
            self._closing.wait(WRITE_SECONDS)


class StatusLogger(NullLogger):
    """A `RunLogger` that passes progress on to the driver's status."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver, self._name = driver, name

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        left = stats.get("seconds_left")
        self._driver.progress(self._name, done, total, unit, left, running)

    def child(self, name: str, key: str, kind: str) -> StatusLogger:
        return StatusLogger(self._driver, name)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
