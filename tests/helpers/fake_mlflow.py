"""A tracking server in memory that can hang, refuse users and carry out requests late."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from multistill.tracking.server import (
    DUPLICATE_TAG,
    KEY_TAG,
    PARENT_TAG,
    REQUEST_TAG,
    ForbiddenError,
    ServerUnavailableError,
)


class Store:
    """What the server holds, shared by all its clients.

    Attributes:
        answers: for each coming creation, whether the client gets an answer; then all are.
        hung: nothing is answered; creations are carried out at `catch_up`.
        readers: users who may not write.
        no_room: no file is stored; everything else is.
        files: names of the stored ones.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.late: list[Callable[[], object]] = []
        self.answers: list[bool] = []
        self.hung = False
        self.readers: set[str] = set()
        self.no_room = False
        self.files: list[str] = []
        self._ids = itertools.count()

    def catch_up(self) -> None:
        self.hung = False
        while self.late:
            self.late.pop(0)()

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        run_id = f"run{next(self._ids)}"
        info = SimpleNamespace(
            run_id=run_id, run_name=name, start_time=start, status="RUNNING", experiment=experiment
        )
        data = SimpleNamespace(tags=dict(tags), params={}, points=[])
        self.runs[run_id] = SimpleNamespace(info=info, data=data)
        return run_id

    def named(self, name: str) -> list[Any]:
        return [run for run in self.runs.values() if run.info.run_name == name]


class FakeServer:
    """Stands in for `multistill.tracking.server.Server`."""

    remote = True
    client = None

    def __init__(self, store: Store, user: str, experiment: str = "e") -> None:
        self.store, self.user, self.experiment, self.uri = store, user, experiment, "http://fake"

    def _ask(self, write: bool = False) -> None:
        if self.store.hung:
            raise ServerUnavailableError("timed out")
        if write and self.user in self.store.readers:
            raise ForbiddenError("Permission denied")

    def connect(self) -> str:
        self._ask()
        return self.experiment

    def ping(self) -> None:
        self._ask()

    def _where(self, condition: Callable[[Any], bool]) -> list[Any]:
        self._ask()
        runs = [run for run in self.store.runs.values() if DUPLICATE_TAG not in run.data.tags]
        return [run for run in runs if condition(run)]

    def top_level_runs(self, experiment: str, key: str) -> list[Any]:
        found = self._where(
            lambda r: r.data.tags.get(KEY_TAG) == key and PARENT_TAG not in r.data.tags
        )
        return sorted(found, key=lambda run: -run.info.start_time)

    def requested_runs(self, experiment: str, request: str) -> list[Any]:
        return self._where(lambda run: run.data.tags.get(REQUEST_TAG) == request)

    def child_runs(self, experiment: str, parent: str) -> list[Any]:
        return self._where(lambda run: run.data.tags.get(PARENT_TAG) == parent)

    def create_run(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        if self.store.hung or (self.store.answers and not self.store.answers.pop(0)):
            self.store.late.append(lambda: self.store.create(experiment, name, start, tags))
            raise ServerUnavailableError("timed out")
        self._ask(write=True)
        return self.store.create(experiment, name, start, tags)

    def remove_duplicate(self, run_id: str, kept: str) -> None:
        self._ask(write=True)
        run = self.store.runs[run_id]
        run.data.tags[DUPLICATE_TAG], run.info.status = kept, "KILLED"

    def reopen_run(self, run_id: str) -> None:
        self._ask(write=True)
        self.store.runs[run_id].info.status = "RUNNING"

    def end_run(self, run_id: str, status: str, time_ms: int) -> None:
        self._ask(write=True)
        self.store.runs[run_id].info.status = status

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        self._ask()
        return {step for name, _, _, step in self.store.runs[run_id].data.points if name == key}

    def log(
        self,
        run_id: str,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[str]:
        self._ask(write=True)
        data = self.store.runs[run_id].data
        data.points += points
        data.params |= params or {}
        data.tags |= tags or {}
        return []

    def upload(self, run_id: str, path: Path, folder: str, name: str | None = None) -> None:
        self._ask(write=True)
        if self.store.no_room:
            raise ServerUnavailableError("507 Insufficient Storage")
        self.store.files.append(path.name)
