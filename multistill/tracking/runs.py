"""Finds a job's runs on the server or creates them: each once, and only one's own.

A creation that was not answered may still be carried out: by a server that hung, or whose
database was locked. Every creation therefore carries a tag that names the request. It is
looked up before the request is repeated, and the runs that a server made of one request later
are reduced to the one in use (`settle`).

A run belongs to its owner, and while a driver is alive, to that driver. Another driver that
runs the same job at the same time gets a run of its own.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multistill.tracking.journal import Journal, Record, held
from multistill.tracking.owner import Owner
from multistill.tracking.registry import remove_duplicate_versions
from multistill.tracking.server import (
    KEY_TAG,
    KIND_TAG,
    ORPHAN_TAG,
    PARENT_TAG,
    REQUEST_TAG,
    ForbiddenError,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
)

OWNER_TAG = "multistill.owner"
HOST_TAG = "multistill.host"
LEASE_TAG = "multistill.lease"
HEARTBEAT_TAG = "multistill.heartbeat"
SAME_JOB_TAG = "multistill.same_job_as"

HEARTBEAT_SECONDS = 30.0
LEASE_SECONDS = 150.0
"""After this long without a heartbeat, a driver whose journal cannot be seen counts as dead."""

SLOW_SECONDS = 5.0
"""A creation that took longer may have been repeated by the HTTP library or a proxy."""

SETTLE_SECONDS = 120.0
"""For this long after an unanswered request the server is asked again what it made of it."""
SETTLE_PAUSE_SECONDS = 10.0


class HeldError(Exception):
    """A live driver holds the run, so an old journal must not change it."""


@dataclass
class Run:
    """State of one run on the server.

    Attributes:
        continued: the run may have metric values and children that this process did not send.
        orphan: the run is tagged as left open by a process that died.
        steps: logged steps by metric; a metric is missing until the server has been queried.
        children: child runs by key; None until the server has been queried.
    """

    id: str
    continued: bool
    running: bool = True
    orphan: bool = False
    steps: dict[str, set[int]] = field(default_factory=dict)
    children: dict[str, Any] | None = None


@dataclass
class Doubt:
    """A request to create something that the server may carry out more than once.

    Attributes:
        kind: `run`, or `version` of a registered model.
        scope: name of the experiment or of the registered model.
        request: the value of the tag that names the request.
        kept: id of the run in use; None if nothing of the request is used.
        since: of the last request, in seconds since 1970.
        checked: the server was asked since it answered again.
    """

    kind: str
    scope: str
    request: str
    kept: str | None
    since: float
    checked: bool = False


class Runs:
    """Finds and creates runs for one driver. Not thread-safe.

    Args:
        owner: of the runs.
        journal: of this driver; its name identifies the driver.
        clock: wall time in seconds.
    """

    def __init__(
        self, server: Server, owner: Owner, journal: Journal, clock: Callable[[], float] = time.time
    ) -> None:
        self._server = server
        self._owner = owner
        self._journal = journal
        self._clock = clock
        self._doubts: dict[str, Doubt] = {}
        self._requesting: Doubt | None = None
        self._next_settle = 0.0
        self.given_up = False
        self._replayed: set[str] = set()

    @property
    def in_doubt(self) -> bool:
        return bool(self._doubts)

    def top_level(self, experiment: str, record: Record, source: Journal) -> Run:
        """Find or create the top-level run of a journal.

        Args:
            source: the journal that holds the record: this driver's, or a dead one's.

        Raises:
            HeldError: the journal of a dead process, whose run a live driver has taken over.
        """
        request = _request(source, record)
        candidates = self._server.top_level_runs(experiment, record["key"])
        requested = [r for r in candidates if r.data.tags.get(REQUEST_TAG) == request]
        recorded = [r for r in candidates if r.info.run_id == source.run_id]
        own = [r for r in candidates if r.data.tags.get(OWNER_TAG) == self._owner.name]
        replayed = source is not self._journal
        for existing in [*recorded, *([self._oldest(requested)] if requested else []), *own]:
            if not self._is_held(existing, source):
                self._keep(request, existing)
                return self._continue(existing, source)
            if replayed:
                raise HeldError
        tags, name = self._lease(), record["name"]
        if candidates:
            name = f"{name} #{len(candidates) + 1}"
            tags[SAME_JOB_TAG] = str(candidates[-1].info.run_id)
        return self._create(experiment, {**record, "name": name}, request, tags, source)

    def child(self, experiment: str, record: Record, parent: Run, source: Journal) -> Run:
        """Find or create a run below another one, which this driver holds."""
        existing = self._children(experiment, parent).get(record["key"])
        request = _request(source, record)
        if existing is None and request in self._doubts:
            requested = self._server.requested_runs(experiment, request)
            existing = self._oldest(requested) if requested else None
        if existing is not None:
            self._keep(request, existing)
            return _continued(existing)
        return self._create(experiment, record, request, {PARENT_TAG: parent.id}, source)

    def _children(self, experiment: str, parent: Run) -> dict[str, Any]:
        if not parent.continued:
            return {}
        if parent.children is None:  # one query for all, not one for each of 2,000 trials
            by_key: dict[str, list[Any]] = {}
            for run in self._server.child_runs(experiment, parent.id):
                by_key.setdefault(run.data.tags.get(KEY_TAG, ""), []).append(run)
            parent.children = {key: self._oldest(runs) for key, runs in by_key.items()}
        return parent.children

    def _create(
        self, experiment: str, record: Record, request: str, tags: Record, source: Journal
    ) -> Run:
        tags = {
            **record["tags"],
            **tags,
            KEY_TAG: record["key"],
            KIND_TAG: record["kind"],
            REQUEST_TAG: request,
            OWNER_TAG: self._owner.name,
            "mlflow.user": self._owner.name,
            HOST_TAG: str(source.header.get("host", "unknown")),
        }
        with self.requesting("run", experiment, request) as doubt:
            doubt.kept = self._server.create_run(experiment, record["name"], record["t"], tags)
        if source is self._journal:
            if PARENT_TAG not in tags:
                source.run_id = doubt.kept
        elif source.name not in self._replayed:
            # The first one that is missing may have been requested when its process died.
            self._replayed.add(source.name)
            self.doubt(doubt)
        return Run(doubt.kept, continued=False)

    def _keep(self, request: str, run: Any) -> None:
        """Note which run is in use, if the request that asked for it is in doubt."""
        if request in self._doubts:
            self._doubts[request].kept = str(run.info.run_id)
            self._save()

    def requesting(self, kind: str, scope: str, request: str) -> _Request:
        """Context of a request to create something; keeps it in doubt unless answered at once."""
        return _Request(self, Doubt(kind, scope, request, None, self._clock()))

    def _oldest(self, runs: list[Any]) -> Any:
        """Return the first run, and remove the others if they are of the same request."""
        first, *others = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        for run in others:
            if run.data.tags.get(REQUEST_TAG) == first.data.tags.get(REQUEST_TAG):
                self._server.remove_duplicate(str(run.info.run_id), str(first.info.run_id))
        return first

    def _continue(self, existing: Any, source: Journal) -> Run:
        run = _continued(existing)
        if source is self._journal:
            source.run_id = run.id
            self._server.log(run.id, tags=self._lease())
        return run

    def _lease(self) -> dict[str, str]:
        return {
            LEASE_TAG: self._journal.name,
            # Milliseconds, so that each is a change that the database has to store.
            HEARTBEAT_TAG: f"{self._clock():.3f}",
            HOST_TAG: str(self._journal.header.get("host", "unknown")),
        }

    def renew_lease(self, run_id: str) -> None:
        """Show other drivers that this one is alive."""
        self._server.log(run_id, tags=self._lease())

    def check_server(self) -> None:
        """Check that the server stores what it is sent, by a heartbeat of this driver's run.

        A database that is full or read-only still answers questions.

        Raises:
            ServerUnavailableError: it does not; no record is at fault.
        """
        run_id = self._journal.run_id
        if run_id is None:
            self._server.ping()
        else:
            self.renew_lease(run_id)

    def _is_held(self, run: Any, source: Journal) -> bool:
        """Whether another live driver records to the run."""
        driver = _driver(run)
        if run.info.status != "RUNNING" or driver in ("", self._journal.name, source.name):
            return False
        folder = self._journal.folder.parent / Path(driver).name
        if folder.exists():
            return held(folder)
        try:
            beat = float(run.data.tags.get(HEARTBEAT_TAG, ""))
        except ValueError:
            return False
        return self._clock() - beat < LEASE_SECONDS

    def doubt(self, doubt: Doubt) -> None:
        """Remember that the server may still carry out a request."""
        self._doubts[doubt.request] = doubt
        self._save()

    def adopt(self, doubts: Record) -> None:
        """Take over the doubts of a dead process."""
        for fields in doubts.get("requests", []):
            doubt = Doubt(**fields)
            if not doubt.checked:
                doubt.since = self._clock()
            self._doubts.setdefault(doubt.request, doubt)
        self._save()

    def settle(self, *, now: bool = False) -> None:
        """Reduce what the server made of the requests in doubt to what is in use.

        Args:
            now: do not wait for the pause between two attempts, e.g. at the end of a run.
        """
        if not self._doubts or (self._clock() < self._next_settle and not now):
            return
        for doubt in list(self._doubts.values()):
            try:
                self._settle(doubt)
            except (RecordRejectedError, ForbiddenError):
                doubt.checked = True
            if self._clock() - doubt.since > SETTLE_SECONDS:
                del self._doubts[doubt.request]
        self._next_settle = self._clock() + SETTLE_PAUSE_SECONDS
        self._save()

    def _settle(self, doubt: Doubt) -> None:
        if doubt.kind == "version":
            remove_duplicate_versions(self._server, doubt.scope, doubt.request)
        else:
            for run in self._server.requested_runs(doubt.scope, doubt.request):
                if run.info.run_id != doubt.kept:
                    self._server.remove_duplicate(str(run.info.run_id), doubt.kept or "no run")
        if not doubt.checked:
            doubt.checked, doubt.since = True, self._clock()

    def give_up(self) -> bool:
        """Create nothing from now on; return whether the server may still create something."""
        if self._requesting is not None:
            self._doubts[self._requesting.request] = self._requesting
        for doubt in self._doubts.values():
            doubt.kept = None
        self._save()
        self.given_up = True
        return self.in_doubt

    def _save(self) -> None:
        if self.given_up:  # the journal is another process's by now
            return
        requests = [asdict(doubt) for doubt in self._doubts.values()]
        self._journal.write_doubts({"requests": requests} if requests else {})


class _Request:
    """Context of one creation: in doubt unless the server answers, and answers soon."""

    def __init__(self, runs: Runs, doubt: Doubt) -> None:
        self._runs, self._doubt = runs, doubt

    def __enter__(self) -> Doubt:
        if self._runs.given_up:
            raise ServerUnavailableError("the run was given up")
        self._started = time.monotonic()
        self._runs._requesting = self._doubt
        return self._doubt

    def __exit__(self, kind: type[BaseException] | None, error: object, *_: object) -> None:
        self._runs._requesting = None
        refused = isinstance(error, RecordRejectedError | ForbiddenError) or (
            isinstance(error, ServerUnavailableError) and error.denied
        )
        slow = time.monotonic() - self._started > SLOW_SECONDS
        earlier = self._doubt.request in self._runs._doubts
        if not refused and (error is not None or slow or earlier):
            self._doubt.since = self._runs._clock()
            self._runs.doubt(self._doubt)


def _continued(run: Any) -> Run:
    orphan = run.data.tags.get(ORPHAN_TAG) == "true"
    return Run(str(run.info.run_id), continued=True, running=False, orphan=orphan)


def _driver(run: Any) -> str:
    return str(run.data.tags.get(LEASE_TAG, ""))


def _request(journal: Journal, record: Record) -> str:
    """Name of the request that creates the run of a record, the same for each repetition."""
    text = os.fsencode(f"{journal.name}/{record['node']}")
    return hashlib.sha256(text).hexdigest()[:24]
