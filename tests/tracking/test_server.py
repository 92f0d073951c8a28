"""Tracking with a real MLflow: a SQLite file, and a server process that is killed."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import MlflowServer

from multistill.config import TrackingConfig
from multistill.errors import MultistillError, UsageError
from multistill.tracking import Tracker, open_tracker, recorder
from multistill.tracking.journal import Journal


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path
) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    shutil.copyfile(mlflow_database, server.folder / "mlflow.db")
    server.start()
    yield server
    server.kill()


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(client: Any, experiment: str) -> dict[str, Any]:
    """Return the experiment's runs by name; fail if two runs have the same name."""
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    names = Counter(run.info.run_name for run in runs)
    assert max(names.values()) == 1, names
    return {run.info.run_name: run for run in runs}


def steps(client: Any, run: Any, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, key)]


def delivered(tracker: Tracker, seconds: float = 15.0) -> bool:
    """Wait until everything logged so far is on the server; return whether it is."""
    return tracker._recorder.flush(seconds)


@contextmanager
def unanswered(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers no request, until several were sent."""
    monkeypatch.setattr(recorder, "RETRY_SECONDS", (0.3,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    yield
    deadline = time.monotonic() + 120
    while tracker._recorder._failures < 3:
        assert time.monotonic() < deadline, "it did not ask again"
        time.sleep(0.05)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")


def deliver(tracker: Tracker) -> None:
    """Wait until the server that answers again has everything, and end the run."""
    deadline = time.monotonic() + 120
    while not delivered(tracker, 5) and time.monotonic() < deadline:
        time.sleep(0.2)
    tracker.close()


def unsent(workspace: Path) -> list[str]:
    """Journals with records to send; a request that the server may still carry out keeps one."""
    journals = Journal.read_all(workspace / "tracking")
    return [journal.name for journal in journals if journal.unsent]


def kill(tracker: Tracker) -> None:
    """End a tracker as `kill -9` does: nothing more is sent, and the kernel frees the lock."""
    recorder = tracker._recorder
    recorder._stopping = True
    recorder._flush_now.set()
    recorder._new_records.set()
    recorder._thread.join(30)
    recorder.journal.release()


class Start:
    """Calls `open_tracker` with a workspace in `folder`; records the messages it logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.messages: list[str] = []

    def __call__(self, job: str, uri: str | None = None, key: str = "k1", **config: Any) -> Tracker:
        return open_tracker(
            TrackingConfig(uri=uri, **config),
            self.folder,
            job,
            key,
            {"commit": "abc"},
            log=self.messages.append,
        )


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Start(tmp_path)


def test_a_tree_of_runs_is_recorded_in_the_default_sqlite_file(
    start: Start, tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")
    top = start("트리 job")
    child = top.child("student 'a'", "model:student 'a'", "model")
    child.params({"width": 64, "long": "x" * 9000})
    child.metrics({"loss": 2.0, "bad": "text"}, step=1)  # type: ignore[dict-item]
    child.metrics({"loss": float("nan")}, step=2)
    child.metrics({"loss": float("inf")}, step=3)
    child.artifact(note, "files")
    note.write_text("changed after")
    assert child.record_id is not None
    child.close("KILLED")
    stage = top.child("stage", "s", "stage")
    stage.child("left open", "a/b", "trial")
    stage.close("FAILED")
    top.close()

    client = client_of(top.uri)
    runs = runs_of(client, "트리 job")
    recorded = runs["student 'a'"]
    assert recorded.info.run_id == child.record_id
    assert recorded.info.status == "KILLED"
    assert recorded.data.tags["mlflow.parentRunId"] == top.record_id
    assert recorded.data.tags["commit"] == "abc"
    assert recorded.data.params["width"] == "64"
    assert len(recorded.data.params["long"]) == 6000
    assert steps(client, recorded, "loss") == [1, 2, 3]
    assert "bad" not in recorded.data.metrics
    assert runs["트리 job"].info.status == "FINISHED"
    assert runs["left open"].info.status == "FAILED"
    assert runs["left open"].data.tags["mlflow.parentRunId"] == runs["stage stage"].info.run_id
    local = client.download_artifacts(recorded.info.run_id, "files/note.txt", str(tmp_path / "d"))
    assert Path(local).read_text() == "hello"
    assert unsent(tmp_path) == []
    assert (tmp_path / "mlflow-artifacts").is_dir()


def test_a_resumed_run_continues_its_mlflow_run(
    start: Start, mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    first = start("resumed")
    child = first.child("model", "m", "model")
    abandoned = first.child("abandoned", "g", "model")
    for epoch in (1, 2, 3):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    child.params({"width": 8})
    abandoned.metrics({"loss": 1.0}, step=1)
    assert delivered(first)
    ids = (first.record_id, child.record_id)
    kill(first)

    second = start("resumed")
    child = second.child("model", "m", "model")
    for epoch in (3, 4):  # the checkpoint is older than the last logged epoch
        child.metrics({"loss": 1 / epoch}, step=epoch)
    child.params({"width": 16})
    child.close()
    second.close()
    assert (second.record_id, child.record_id) == ids

    client = client_of(second.uri)
    runs = runs_of(client, "resumed")
    assert steps(client, runs["model"], "loss") == [1, 2, 3, 4]
    assert runs["model"].data.params == {"width": "8"}
    assert runs["model"].data.tags["changed.width"] == "16"
    assert runs["model"].info.status == "FINISHED"
    assert runs["abandoned"].info.status == "KILLED"
    assert runs["abandoned"].data.tags["multistill.orphan"] == "true"


KILLED_RUN = """
import os, sys
from pathlib import Path
from multistill.config import TrackingConfig
from multistill.tracking import open_tracker
top = open_tracker(TrackingConfig(uri=sys.argv[2]), Path(sys.argv[1]), "killed", "k1", {})
child = top.child("model", "m", "model")
for epoch in range(1, 2001):
    child.metrics({"loss": 1 / epoch, "f1": epoch / 2000}, step=epoch)
os._exit(9)
"""


def test_a_server_that_hangs_while_runs_are_created_makes_each_once(
    start: Start, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = start("hung", server.uri)
    server.pause()
    try:
        with unanswered(top, monkeypatch):
            for name in ("a", "b"):
                child = top.child(name, name, "model")
                child.metrics({"loss": 1.0}, step=1)
    finally:
        server.resume()
    deliver(top)
    runs = runs_of(client_of(server.uri), "hung")  # fails if two have the same name
    assert set(runs) == {"hung", "a", "b"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in ("a", "b"):
        assert steps(client_of(server.uri), runs[name], "loss") == [1]


def test_a_locked_database_makes_each_run_once(
    start: Start, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = start("locked", server.uri)
    database = sqlite3.connect(server.folder / "mlflow.db", timeout=30, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        with unanswered(top, monkeypatch):
            top.child("a", "a", "model").metrics({"loss": 1.0}, step=1)
    finally:
        database.rollback()
        database.close()
    deliver(top)
    runs = runs_of(client_of(server.uri), "locked")
    assert set(runs) == {"locked", "a"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_killed_process_loses_no_metric_value(
    start: Start, server: MlflowServer, tmp_path: Path
) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path), server.uri])
    assert process.returncode == 9
    other = start("another job", server.uri, key="k2")
    assert delivered(other, 60)
    other.close()
    client = client_of(server.uri)
    runs = runs_of(client, "killed")
    for key in ("loss", "f1"):
        assert sorted(steps(client, runs["model"], key)) == list(range(1, 2001))
    assert runs["model"].info.status == runs["killed"].info.status == "KILLED"
    assert unsent(tmp_path) == []


def test_after_a_server_outage_every_metric_value_has_arrived_once(
    start: Start, server: MlflowServer, tmp_path: Path
) -> None:
    top = start("outage", server.uri)
    child = top.child("model", "m", "model")
    for epoch in range(1, 6):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    assert delivered(top, 30)
    server.kill()
    started = time.monotonic()
    for epoch in range(6, 11):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    note = tmp_path / "note.txt"
    note.write_text("from the outage")
    child.artifact(note)
    late = top.child("late", "l", "model")
    late.metrics({"loss": 0.5}, step=1)
    assert time.monotonic() - started < 1.0
    assert late.record_id is None
    late.close()
    child.close()
    started = time.monotonic()
    top.close()
    assert time.monotonic() - started < 20
    assert any("does not answer" in text for text in start.messages)
    assert any((tmp_path / "tracking").iterdir())

    other = start("other", server.uri, key="k2", required=False)
    other.metrics({"loss": 1.0}, step=1)
    assert other.record_id is None

    server.start()
    deadline = time.monotonic() + 60
    while not delivered(other, 5) and time.monotonic() < deadline:
        time.sleep(0.2)
    other.close()
    client = client_of(server.uri)
    runs = runs_of(client, "outage")
    assert steps(client, runs["model"], "loss") == list(range(1, 11))
    assert steps(client, runs["late"], "loss") == [1]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    artifacts = [item.path for item in client.list_artifacts(runs["model"].info.run_id)]
    assert artifacts == ["note.txt"]
    assert steps(client, runs_of(client, "other")["other"], "loss") == [1]
    assert unsent(tmp_path) == []


@pytest.mark.parametrize("listens", [False, True], ids=["closed port", "silent port"])
def test_a_server_that_does_not_answer_is_an_error_within_seconds(
    start: Start,
    listens: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listens:
            sock.listen()
        port = sock.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(MultistillError) as caught:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret99@127.0.0.1:{port}")
            start("nobody")
        assert time.monotonic() - started < 15
    message = str(caught.value)
    assert "does not answer" in message
    assert "tracking.required: false" in message
    assert "secret99" not in message
    assert caught.value.exit_code == 1
    assert unsent(tmp_path) == []


def test_a_deleted_experiment_is_an_error_at_the_start(start: Start, server: MlflowServer) -> None:
    client = client_of(server.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(UsageError, match=r"deleted.*tracking\.experiment"):
        start("deleted", server.uri)


def test_the_caller_never_waits_for_the_store(
    start: Start, mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    top = start("many")
    started = time.monotonic()
    for number in range(40):
        trial = top.child(f"trial {number}", f"t{number}", "trial")
        for epoch in range(1, 11):
            trial.metrics({"f1": epoch / 10, "loss": 1 / epoch}, step=epoch)
        trial.params({"T": number})
        trial.close()
    assert time.monotonic() - started < 2.0
    assert delivered(top, 120)
    top.close()
    runs = runs_of(client_of(top.uri), "many")
    assert len(runs) == 41
    assert all(run.info.status == "FINISHED" for run in runs.values())


def test_the_champion_is_the_best_version_and_the_same_model_is_registered_once(
    start: Start, server: MlflowServer, tmp_path: Path
) -> None:
    def model(weights: str) -> Path:
        folder = tmp_path / "models" / weights
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        return folder

    top = start("registry", server.uri)
    for weights, value in [("a", 0.5), ("b", 0.7), ("c", 0.6), ("b", 0.7), ("d", float("nan"))]:
        child = top.child(weights, weights, "model")
        child.register("emotion/audio", model(weights), "valid_uar", value)
    assert delivered(top, 60)
    top.close()
    client = client_of(server.uri)
    versions = client.search_model_versions("name = 'emotion-audio'")
    assert len(versions) == 4
    champion = client.get_model_version_by_alias("emotion-audio", "champion")
    assert champion.tags["valid_uar"] == "0.7"
    assert champion.run_id == runs_of(client, "registry")["b"].info.run_id
    local = client.download_artifacts(champion.run_id, "model", str(tmp_path))
    assert (Path(local) / "model.safetensors").read_text() == "b"
    assert sum("is the champion" in text for text in start.messages) == 3


def test_the_champion_changes_only_by_the_margin_and_on_the_same_data(
    start: Start, server: MlflowServer, tmp_path: Path
) -> None:
    def register(run: Tracker, weights: str, value: float, data: str) -> None:
        folder = tmp_path / weights
        folder.mkdir()
        (folder / "model.safetensors").write_text(weights)
        run.register("ruled", folder, "valid_loss", value, mode="min", margin=0.1, data=data)

    top = start("ruled", server.uri)
    for weights, value, data in [
        ("first", 0.9, "a"),
        ("slightly", 0.85, "a"),
        ("elsewhere", 0.1, "b"),
        ("clearly", 0.7, "a"),
    ]:
        register(top, weights, value, data)
    assert delivered(top, 60)
    top.close()
    client = client_of(server.uri)
    champion = client.get_model_version_by_alias("ruled", "champion")
    assert champion.tags["valid_loss"] == "0.7" and champion.tags["multistill.data"] == "a"
    messages = [text for text in start.messages if text.startswith("ruled version")]
    assert ["is the champion" in text for text in messages] == [True, False, False, True]
    assert "not beaten by 0.1" in messages[1]
    assert "other data" in messages[2] and "stays the champion" in messages[2]


def test_registering_a_model_again_updates_its_tags(
    start: Start, server: MlflowServer, tmp_path: Path
) -> None:
    def register(run: Tracker, weights: str, metric: str, value: float, seeds: int) -> None:
        folder = tmp_path / weights
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
        tags = {"multistill.seeds": str(seeds)}
        run.register("again", folder, metric, value, data="a", tags=tags)

    top = start("again", server.uri)
    register(top, "first", "valid_uar", 0.9, 1)
    register(top, "second", "valid_macro_f1", 0.1, 1)  # the champion has no such metric
    register(top, "first", "valid_uar", 0.5, 3)
    register(top, "third", "valid_uar", 0.6, 3)
    assert delivered(top, 60)
    top.close()
    client = client_of(server.uri)
    versions = client.search_model_versions("name = 'again'")
    first = next(v for v in versions if v.tags.get("valid_uar") == "0.5")
    assert first.tags["multistill.seeds"] == "3"
    champion = client.get_model_version_by_alias("again", "champion")
    assert champion.tags["valid_uar"] == "0.6" and len(versions) == 3
    messages = [text for text in start.messages if text.startswith("again version")]
    assert ["is the champion" in text for text in messages] == [True, False, True, True]
    assert "it has no valid_macro_f1" in messages[1]


def test_secrets_are_not_written_to_disk(
    start: Start,
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server.uri.replace("http://", "http://ann:secret99@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    top = start("secret")
    top.params({"uri": address})
    top.tags({"uri": address})
    delivered(top)
    for path in (tmp_path / "tracking").rglob("*"):
        if path.is_file():
            assert b"secret99" not in path.read_bytes()
    assert "secret99" not in top.uri
    top.close()
    run = runs_of(client_of(server.uri), "secret")["secret"]
    assert "secret99" not in str(run.to_dictionary())
