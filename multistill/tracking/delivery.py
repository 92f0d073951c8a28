"""Applies the records of a journal to runs on the server; idempotent.

A record can be applied twice: the process may be killed after the server has accepted a
record and before that is stored. Therefore runs are looked up before they are created (see
`multistill.tracking.runs`), metric values of a step that the server already has are not sent
again, and parameters, tags and files overwrite themselves with the same value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multistill.tracking.journal import Journal, Record
from multistill.tracking.registry import register
from multistill.tracking.runs import Run, Runs
from multistill.tracking.server import (
    ORPHAN_TAG,
    ForbiddenError,
    Point,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
    clean_key,
    from_json_number,
)

RESUMED_TAG = "multistill.resumed"
UPLOADS = {"artifact", "register"}
"""Operations that store files: they fail alone where the server's disk is full."""


@dataclass
class _Pending:
    points: list[Point] = field(default_factory=list)
    new_steps: list[tuple[str, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Delivery:
    """Applies records to a server. Not thread-safe.

    Args:
        runs: finds and creates the runs that records belong to.

    Attributes:
        rejected: error messages of rejected records, oldest first.
        messages: human-readable messages about what was done.
        champions: versions that became champions, as of `Registered`.
        protected: ids of live runs, which the replay of an old journal must not end.
    """

    def __init__(self, server: Server, runs: Runs) -> None:
        self.server = server
        self.runs = runs
        self.rejected: list[str] = []
        self.messages: list[str] = []
        self.champions: list[dict[str, Any]] = []
        self.protected: set[str] = set()
        self._runs: dict[tuple[str, str], Run | None] = {}

    def run_id(self, experiment: str, node: str) -> str | None:
        run = self._runs.get((experiment, node))
        return run.id if run else None

    def apply_each(
        self, experiment: str, records: Iterable[Record], journal: Journal, *, live: bool
    ) -> None:
        """Apply records one at a time, passing over any that makes a healthy server fail.

        Otherwise a record that always causes a server error would block all records after it.
        An upload is deferred, any other record is dropped.
        """
        for record in records:
            failure = self._failure_of(experiment, record, journal, live=live)
            if failure is not None:  # again: the server may have been back only for the check
                failure = self._failure_of(experiment, record, journal, live=live)
            if failure is None:
                continue
            if record["op"] in UPLOADS:
                journal.defer(record)
                self.messages.append(
                    f"the tracking server cannot store {record['file'].rsplit('/', 1)[-1]} "
                    f"({failure}); it stays in {journal.folder} and is sent again later: free "
                    "some space for artifacts on the server"
                )
            else:
                self.rejected.append(failure)

    def _failure_of(
        self, experiment: str, record: Record, journal: Journal, *, live: bool
    ) -> str | None:
        """Apply one record; why it failed although the server takes others, else None."""
        try:
            self.apply(experiment, [record], journal, live=live)
        except ForbiddenError:
            raise  # kept: permission may be granted
        except ServerUnavailableError as error:
            if error.denied:
                raise
            self.runs.check_server()
            return str(error)
        return None

    def send_deferred(self, experiment: str, journal: Journal) -> None:
        """Repeat the journal's deferred uploads.

        Raises:
            ServerUnavailableError: at least one failed again; it stays deferred.
        """
        failed: list[Record] = []
        error: ServerUnavailableError | None = None
        for record in journal.deferred:
            run = self._runs.get((experiment, record["node"]))
            try:
                if run is not None:
                    self._store(run, record, journal)
            except ServerUnavailableError as caught:
                failed.append(record)
                error = caught
        journal.write_deferred(failed)
        if error is not None:
            raise error

    def apply(
        self, experiment: str, records: Iterable[Record], journal: Journal, *, live: bool
    ) -> None:
        """Apply records in batches.

        Args:
            live: False for the journal of a dead process.

        Raises:
            ServerUnavailableError: the same records can then be applied again.
        """
        batches: dict[str, _Pending] = {}
        for record in records:
            operation = record.get("op")
            node = record.get("node", "")
            if operation == "open":
                self.open(experiment, record, journal, live=live)
                continue
            run = self._runs.get((experiment, node))
            if run is None:  # the run was rejected, which has been reported
                continue
            pending = batches.setdefault(node, _Pending())
            if operation == "metrics":
                self._add_points(run, pending, record)
            elif operation == "params":
                pending.params.update(record["values"])
            elif operation == "tags":
                pending.tags.update(record["values"])
            elif operation in UPLOADS and journal.deferred:  # no room: behind those that wait
                journal.defer(record)
            elif operation in UPLOADS:
                self._store(run, record, journal)
            elif operation == "close":
                for ending in [n for n in batches if n == node or n.startswith(f"{node}/")]:
                    ended = self._runs[(experiment, ending)]
                    if ended is not None:
                        self._send(ended, batches.pop(ending))
                if live or run.id not in self.protected:
                    for descendant in self._running_descendants(experiment, node):
                        self._end(descendant, record)
                    self._end(run, record)
        for node, pending in batches.items():
            run = self._runs[(experiment, node)]
            if run is not None:
                self._send(run, pending)

    def open(self, experiment: str, record: Record, journal: Journal, *, live: bool) -> Run | None:
        """Look up the record's run by its key below its parent, or create it."""
        run_key = (experiment, record["node"])
        if run_key not in self._runs:
            try:
                self._runs[run_key] = self._find_or_create(experiment, record, journal)
            except RecordRejectedError as error:
                self.rejected.append(str(error))
                self._runs[run_key] = None
        run = self._runs[run_key]
        if run is not None and not run.running:
            self.server.reopen_run(run.id)
            if live:
                self._tag_resumed(run, record)
            run.running = True
        return run

    def _tag_resumed(self, run: Run, record: Record) -> None:
        resumed = datetime.fromtimestamp(record["t"] / 1000, UTC).isoformat(timespec="seconds")
        tags = {**record["tags"], RESUMED_TAG: resumed}
        if run.orphan:
            tags[ORPHAN_TAG] = "false"
            run.orphan = False
        self.rejected += self.server.log(run.id, tags=tags)

    def _find_or_create(self, experiment: str, record: Record, journal: Journal) -> Run:
        if record["parent"] is None:
            return self.runs.top_level(experiment, record, journal)
        parent = self._runs.get((experiment, record["parent"]))
        if parent is None:
            raise RecordRejectedError(f"the parent run of `{record['name']}` was rejected")
        return self.runs.child(experiment, record, parent, journal)

    def _add_points(self, run: Run, pending: _Pending, record: Record) -> None:
        step = record["step"]
        for name, value in record["values"].items():
            key = clean_key(name)
            if step is not None:
                if (key, step) in pending.new_steps or step in self._steps(run, key):
                    continue
                pending.new_steps.append((key, step))
            pending.points.append((key, from_json_number(value), record["t"], step or 0))

    def _steps(self, run: Run, key: str) -> set[int]:
        if key not in run.steps:
            run.steps[key] = self.server.logged_steps(run.id, key) if run.continued else set()
        return run.steps[key]

    def _send(self, run: Run, pending: _Pending) -> None:
        self.rejected += self.server.log(run.id, pending.points, pending.params, pending.tags)
        for key, step in pending.new_steps:
            run.steps[key].add(step)

    def _store(self, run: Run, record: Record, journal: Journal) -> None:
        """Upload the file or folder of a record, or register it as a model."""
        path = self._copy_of(record, journal)
        if path is None:
            return
        try:
            if record["op"] == "artifact":
                self.server.upload(run.id, path, record["folder"])
            else:
                registered = register(self.server, run.id, record, path, self.runs.requesting)
                self.messages.append(registered.sentence)
                if registered.champion is not None:
                    self.champions.append(registered.champion)
        except RecordRejectedError as error:
            self.rejected.append(str(error))
        journal.delete_copy(record["file"])

    def _copy_of(self, record: Record, journal: Journal) -> Path | None:
        """The file of a record; None if it was uploaded when the record was applied before."""
        try:
            path = journal.copy_of(record["file"])
        except ValueError as error:
            self.rejected.append(f"{error}; it is not sent")
            return None
        return path if path.exists() else None

    def _running_descendants(self, experiment: str, node: str) -> list[Run]:
        """Return the runs below a node that are still open; they end with its status."""
        return [
            run
            for (run_experiment, run_node), run in self._runs.items()
            if run is not None
            and run.running
            and run_experiment == experiment
            and run_node.startswith(f"{node}/")
        ]

    def _end(self, run: Run, record: Record) -> None:
        try:
            self.server.end_run(run.id, record["status"], record["t"])
        except RecordRejectedError as error:
            self.rejected.append(str(error))
        run.running = False
        # A closed run is rarely reopened: free its steps, and query the server if it is.
        run.steps.clear()
        run.children = None
        run.continued = True

    def mark_unclosed(self, experiment: str, journal: Journal) -> None:
        """End as KILLED the runs that the journal's dead process left open."""
        for node, time_ms in unclosed(journal).items():
            run = self._runs.get((experiment, node))
            if run is not None and run.id not in self.protected:
                self._orphan(run.id, time_ms)
                run.running, run.orphan = False, True
                run.steps.clear()
                run.continued = True

    def mark_orphans(self, experiment: str, run_id: str, time_ms: int) -> None:
        """End as KILLED the children that an earlier attempt of this run left RUNNING."""
        live = {run.id for run in self._runs.values() if run is not None and run.running}
        for child in self.server.child_runs(experiment, run_id):
            if child.info.status == "RUNNING" and child.info.run_id not in live:
                self._orphan(str(child.info.run_id), time_ms)

    def _orphan(self, run_id: str, time_ms: int) -> None:
        self.rejected += self.server.log(run_id, tags={ORPHAN_TAG: "true"})
        self.server.end_run(run_id, "KILLED", time_ms)


def unclosed(journal: Journal) -> dict[str, int]:
    """Nodes that a journal opens and does not close, with the time of their last record."""
    last_time: dict[str, int] = {}
    for record in journal.all_records():
        node = record.get("node")
        if node is None:
            continue
        if record["op"] == "close":
            last_time.pop(node, None)
        else:
            last_time[node] = int(record.get("t", last_time.get(node, 0)))
    return last_time
