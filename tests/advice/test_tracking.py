"""Advice about the tracking server and the registry: provoked and followed, without a server."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says, told
from helpers.fake_mlflow import FakeServer, Store
from mlflow import MlflowClient
from mlflow import environment_variables as variables

from multistill.config import TrackingConfig
from multistill.errors import UsageError
from multistill.tracking import recorder, registry, tracker
from multistill.tracking.journal import Journal
from multistill.tracking.server import (
    ForbiddenError,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
)


def test_a_deleted_experiment(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/m.db"
    client = MlflowClient(tracking_uri=uri)
    number = client.create_experiment("emotion")
    client.delete_experiment(number)
    with told("restore it, or set tracking.experiment to another name", RecordRejectedError):
        Server(uri, "emotion", tmp_path).experiment_id("emotion")
    config = TrackingConfig(uri=uri, experiment="emotion")
    with told("tracking server {} cannot be used ({}): see tracking.uri", UsageError) as refused:
        tracker.open_tracker(config, tmp_path, "job", "key", {})
    assert "restore it" in str(refused.value)
    other = config.model_copy(update={"experiment": "other"})
    tracker.open_tracker(other, tmp_path, "job", "key", {}).close()
    client.restore_experiment(number)
    tracker.open_tracker(config, tmp_path, "job", "key", {}).close()


class Guarded(FakeServer):
    """A server with users, passwords and permissions on one experiment."""

    password = ""

    def _ask(self, write: bool = False) -> None:
        if self.password != "right":
            raise ServerUnavailableError("401", denied=True)
        if write and self.experiment == "emotion" and self.user in self.store.readers:
            raise ForbiddenError("Permission denied")


def opened(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, experiment: str = "emotion"
) -> tuple[tracker.Tracker, list[str]]:
    said: list[str] = []

    def make(uri: str, name: str, *_: object) -> Guarded:
        server = Guarded(store, "ann", name)
        server.password = str(variables.MLFLOW_TRACKING_PASSWORD.get())
        return server

    monkeypatch.setattr(tracker, "Server", make)
    config = TrackingConfig(uri="http://mlflow.lab", experiment=experiment)
    return tracker.open_tracker(config, folder, "job", "key", {}, log=said.append), said


def test_credentials_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    with told(
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
    ) as refused:
        opened(store, tmp_path / "a", monkeypatch)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        assert getattr(variables, f"MLFLOW_TRACKING_{name}").name in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    store.readers = {"ann"}
    with told("ask its owner for EDIT permission, or set tracking.experiment to another name"):
        opened(store, tmp_path / "b", monkeypatch)
    opened(store, tmp_path / "c", monkeypatch, "another")[0].close()
    store.readers = set()  # the owner has granted it
    opened(store, tmp_path / "d", monkeypatch)[0].close()


def test_permission_that_is_lost_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY_SECONDS", (0.05, 0.05))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    store = Store()
    run, said = opened(store, tmp_path, monkeypatch)
    store.readers = {"ann"}
    run.metrics({"loss": 1.0}, step=1)
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    says("until that is permitted: ask the owner of the experiment for EDIT permission", said[0])
    store.readers = set()
    run.close()
    assert [point[0] for point in store.named("job")[0].data.points] == ["loss"]


def test_a_workspace_that_takes_no_records(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db")
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "tracking").write_text("a file")
    with told("tracking records cannot be written to {} ({}); choose another folder with"):
        tracker.open_tracker(config, tmp_path / "ws", "job", "key", {})
    tracker.open_tracker(config, tmp_path / "other", "job", "key", {}).close()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db"), list[str]()
    run = tracker.open_tracker(config, tmp_path, "job", "key", {}, log=said.append)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        run.metrics({"loss": 1.0})
    says("free some disk space: the run itself continues", " ".join(said))
    run.metrics({"uar": 0.5})  # there is space again
    run.close()
    client = MlflowClient(tracking_uri=config.uri)
    numbers = [e.experiment_id for e in client.search_experiments()]
    assert [r.data.metrics for r in client.search_runs(numbers)] == [{"uar": 0.5}]


def test_a_server_without_room_for_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY_SECONDS", (0.05, 0.05))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    store = Store()
    run, said = opened(store, tmp_path, monkeypatch)
    store.no_room = True
    (tmp_path / "note.txt").write_text("note")
    run.artifact(tmp_path / "note.txt")
    run.metrics({"loss": 1.0}, step=1)
    deadline = time.monotonic() + 30
    while len(said) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    says("free some space for artifacts on the server", " ".join(said))
    assert [point[0] for point in store.named("job")[0].data.points] == ["loss"]
    store.no_room = False
    run.close()
    assert store.files == ["note.txt"]
    assert not Journal.read_all(tmp_path / "tracking")


def test_a_champion_that_cannot_be_compared(tmp_path: Path) -> None:
    """The alias that is moved in MLflow decides what the next model is compared with."""
    record: dict[str, Any] = {"data": "new", "metric": "macro_f1", "mode": "max"}
    versions = {
        "move the alias in MLflow if the new data should count from now on": {
            registry.DATA_TAG: "old",
            "macro_f1": "0.5",
        },
        "move the alias in MLflow if this metric should count from now on": {
            registry.DATA_TAG: "new"
        },
        "": {registry.DATA_TAG: "new", "macro_f1": "0.4"},
    }
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/m.db")
    server: Any = SimpleNamespace(client=client)
    client.create_registered_model("emotion")
    found = []
    for number, tags in enumerate(versions.values(), 1):
        client.create_model_version("emotion", source=str(tmp_path), tags=tags)
        client.set_registered_model_alias("emotion", registry.CHAMPION, str(number))
        found.append(registry._not_comparable(registry._champion(server, "emotion"), record))
    says("move the alias in MLflow if the new data should count from now on", found[0])
    says("move the alias in MLflow if this metric should count from now on", found[1])
    assert found[2] == "", "the alias is on a version that can be compared"
