"""From records of a journal to runs on the server; safe to repeat at any point.

A record may reach the server twice (the server answered, then we were killed before we
noted it). So runs are found by key before they are made, points of a step that the server
has are not sent again, and parameters, tags and files overwrite themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from multistill.tracking.journal import Journal, Record
from multistill.tracking.registry import register
from multistill.tracking.server import (
    KEY_TAG,
    KIND_TAG,
    ORPHAN_TAG,
    PARENT_TAG,
    Point,
    RecordRefusedError,
    Server,
    ServerAwayError,
    clean_key,
    from_json_number,
)

RESUMED_TAG = "multistill.resumed"


@dataclass
class Run:
    """What we know of one run on the server.

    Attributes:
        continued: it may hold points and children that this process did not send.
        orphan: it is marked as left open by a process that died.
        steps: steps sent, by metric; None where the server was not asked yet.
    """

    id: str
    continued: bool
    running: bool = True
    orphan: bool = False
    steps: dict[str, set[int]] = field(default_factory=dict)
    children: dict[str, Any] | None = None


@dataclass
class _Pending:
    points: list[Point] = field(default_factory=list)
    stepped: list[tuple[str, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Delivery:
    """Applies records to a server. Used by one thread.

    Attributes:
        refused: sentences about records that the server will never take, oldest first.
        news: sentences for a person about what was done.
        protected: ids of runs that no old journal may end, since they are live now.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.refused: list[str] = []
        self.news: list[str] = []
        self.protected: set[str] = set()
        self._runs: dict[tuple[str, str], Run | None] = {}

    def run_id(self, experiment: str, node: str) -> str | None:
        run = self._runs.get((experiment, node))
        return run.id if run else None

    def apply_each(
        self, experiment: str, records: Iterable[Record], journal: Journal, *, live: bool
    ) -> None:
        """Like `apply`, but a record that makes a healthy server fail is given up.

        Without this, one record that always ends in a server error would hold back all
        records after it for ever.
        """
        for record in records:
            try:
                self.apply(experiment, [record], journal, live=live)
            except ServerAwayError as error:
                self.server.ping()
                self.refused.append(str(error))

    def apply(
        self, experiment: str, records: Iterable[Record], journal: Journal, *, live: bool
    ) -> None:
        """Raises ServerAwayError; the same records may then be applied again.

        Args:
            live: False for the journal of a dead process.
        """
        pending: dict[str, _Pending] = {}
        for record in records:
            operation = record.get("op")
            node = record.get("node", "")
            if operation == "open":
                self.open(experiment, record, live)
                continue
            run = self._runs.get((experiment, node))
            if run is None:  # its run was refused, which was said then
                continue
            waiting = pending.setdefault(node, _Pending())
            if operation == "metrics":
                self._add_points(run, waiting, record)
            elif operation == "params":
                waiting.params.update(record["values"])
            elif operation == "tags":
                waiting.tags.update(record["values"])
            elif operation == "artifact":
                self._upload(run, record, journal)
            elif operation == "register":
                self._register(run, record, journal)
            elif operation == "close":
                self._send(run, pending.pop(node))
                if live or run.id not in self.protected:
                    for below in self._open_below(experiment, node):
                        self._end(below, record)
                    self._end(run, record)
        for node, waiting in pending.items():
            run = self._runs[(experiment, node)]
            if run is not None:
                self._send(run, waiting)

    def open(self, experiment: str, record: Record, live: bool) -> Run | None:
        """Find the record's run by its key below its parent, or make it."""
        place = (experiment, record["node"])
        if place not in self._runs:
            try:
                self._runs[place] = self._find_or_create(experiment, record)
            except RecordRefusedError as error:
                self.refused.append(str(error))
                self._runs[place] = None
        run = self._runs[place]
        if run is not None and not run.running:
            self.server.reopen(run.id)
            if live:
                self._tag_resumed(run, record)
            run.running = True
        return run

    def _tag_resumed(self, run: Run, record: Record) -> None:
        moment = datetime.fromtimestamp(record["t"] / 1000, UTC).isoformat(timespec="seconds")
        tags = {**record["tags"], RESUMED_TAG: moment}
        if run.orphan:
            tags[ORPHAN_TAG] = "false"
            run.orphan = False
        self.refused += self.server.log(run.id, tags=tags)

    def _find_or_create(self, experiment: str, record: Record) -> Run:
        key = record["key"]
        parent = None
        if record["parent"] is None:
            found = self.server.find(experiment, key)
        else:
            parent = self._runs.get((experiment, record["parent"]))
            if parent is None:
                raise RecordRefusedError(f"the run above `{record['name']}` was refused")
            found = self._children(experiment, parent).get(key)
        if found is not None:
            orphan = found.data.tags.get(ORPHAN_TAG) == "true"
            return Run(str(found.info.run_id), continued=True, running=False, orphan=orphan)
        tags = {**record["tags"], KEY_TAG: key, KIND_TAG: record["kind"]}
        if parent is not None:
            tags[PARENT_TAG] = parent.id
        created = self.server.create(experiment, record["name"], record["t"], tags)
        return Run(created, continued=False)

    def _children(self, experiment: str, parent: Run) -> dict[str, Any]:
        if not parent.continued:
            return {}
        if parent.children is None:  # one search for all, not one for each of 2,000 trials
            found = self.server.children(experiment, parent.id)
            parent.children = {run.data.tags.get(KEY_TAG, ""): run for run in found}
        return parent.children

    def _add_points(self, run: Run, waiting: _Pending, record: Record) -> None:
        step = record["step"]
        for name, value in record["values"].items():
            key = clean_key(name)
            if step is not None:
                if (key, step) in waiting.stepped or step in self._steps(run, key):
                    continue
                waiting.stepped.append((key, step))
            waiting.points.append((key, from_json_number(value), record["t"], step or 0))

    def _steps(self, run: Run, key: str) -> set[int]:
        if key not in run.steps:
            run.steps[key] = self.server.steps(run.id, key) if run.continued else set()
        return run.steps[key]

    def _send(self, run: Run, waiting: _Pending) -> None:
        self.refused += self.server.log(run.id, waiting.points, waiting.params, waiting.tags)
        for key, step in waiting.stepped:
            run.steps[key].add(step)

    def _upload(self, run: Run, record: Record, journal: Journal) -> None:
        path = journal.folder / record["file"]
        if not path.exists():  # sent by an earlier attempt at the same records
            return
        try:
            self.server.upload(run.id, path, record["folder"])
        except RecordRefusedError as error:
            self.refused.append(str(error))
        journal.drop_copy(record["file"])

    def _register(self, run: Run, record: Record, journal: Journal) -> None:
        path = journal.folder / record["file"]
        if not path.exists():
            return
        try:
            self.news.append(register(self.server, run.id, record, path))
        except RecordRefusedError as error:
            self.refused.append(str(error))
        journal.drop_copy(record["file"])

    def _open_below(self, experiment: str, node: str) -> list[Run]:
        """Runs below this one that nobody closed: they end as it ends."""
        return [
            run
            for (place, other), run in self._runs.items()
            if run is not None
            and run.running
            and place == experiment
            and other.startswith(f"{node}/")
        ]

    def _end(self, run: Run, record: Record) -> None:
        try:
            self.server.end(run.id, record["status"], record["t"])
        except RecordRefusedError as error:
            self.refused.append(str(error))
        run.running = False
        # A closed run is seldom opened again: forget its steps, ask the server if it is.
        run.steps.clear()
        run.children = None
        run.continued = True

    def mark_unclosed(self, experiment: str, journal: Journal) -> None:
        """End, as KILLED, the runs that a dead process left open."""
        last: dict[str, int] = {}
        for record in journal.all_records():
            node = record.get("node")
            if node is None:
                continue
            if record["op"] == "close":
                last.pop(node, None)
            else:
                last[node] = int(record.get("t", last.get(node, 0)))
        for node, time_ms in last.items():
            run = self._runs.get((experiment, node))
            if run is not None and run.id not in self.protected:
                self._orphan(run.id, time_ms)
                run.running, run.orphan = False, True
                run.steps.clear()
                run.continued = True

    def mark_orphans(self, experiment: str, run_id: str, time_ms: int) -> None:
        """End, as KILLED, children that an earlier attempt of this run left RUNNING."""
        live = {run.id for run in self._runs.values() if run is not None and run.running}
        for child in self.server.children(experiment, run_id):
            if child.info.status == "RUNNING" and child.info.run_id not in live:
                self._orphan(str(child.info.run_id), time_ms)

    def _orphan(self, run_id: str, time_ms: int) -> None:
        self.refused += self.server.log(run_id, tags={ORPHAN_TAG: "true"})
        self.server.end(run_id, "KILLED", time_ms)
