"""Tracking against a real MLflow: a SQLite file, and a server process that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multistill.config import TrackingConfig
from multistill.errors import MultistillError, UsageError
from multistill.tracking import Tracker, open_tracker


class MlflowServer:
    """An `mlflow server` process on its own port and database, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes less
            },
            cwd=self.folder,
        )
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path
) -> Iterator[MlflowServer]:
    process = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    shutil.copyfile(mlflow_database, process.folder / "server.db")
    process.start()
    yield process
    process.kill()


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(client: Any, experiment: str) -> dict[str, Any]:
    """Runs by name; fails where two share one."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    names = Counter(run.info.run_name for run in found)
    assert max(names.values()) == 1, names
    return {run.info.run_name: run for run in found}


def steps(client: Any, run: Any, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, key)]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tracker]:
    """`open_tracker` with a workspace of its own; what it says is in `start.said`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def begin(job: str, uri: str | None = None, key: str = "k1", **config: Any) -> Tracker:
        return open_tracker(
            TrackingConfig(uri=uri, **config),
            tmp_path,
            job,
            key,
            {"commit": "abc"},
            log=begin.said.append,  # type: ignore[attr-defined]
        )

    begin.said = []  # type: ignore[attr-defined]
    return begin


def test_a_run_tree_in_the_default_sqlite_file(
    start: Callable[..., Tracker], tmp_path: Path
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
    assert runs["left open"].data.tags["mlflow.parentRunId"] == runs["stage"].info.run_id
    local = client.download_artifacts(recorded.info.run_id, "files/note.txt", str(tmp_path / "d"))
    assert Path(local).read_text() == "hello"
    assert not any((tmp_path / "tracking").iterdir())
    assert (tmp_path / "mlflow-artifacts").is_dir()


def test_a_resumed_run_continues_its_record(
    start: Callable[..., Tracker], mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    first = start("resumed")
    child = first.child("model", "m", "model")
    gone = first.child("gone", "g", "model")
    for epoch in (1, 2, 3):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    child.params({"width": 8})
    gone.metrics({"loss": 1.0}, step=1)
    assert first.flush()
    ids = (first.record_id, child.record_id)
    first._recorder.journal.release()  # as the kernel does for a killed process
    first._recorder.abandon()

    second = start("resumed")
    child = second.child("model", "m", "model")
    for epoch in (3, 4):  # the checkpoint is older than the last figure
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
    assert runs["gone"].info.status == "KILLED"
    assert runs["gone"].data.tags["multistill.orphan"] == "true"


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


def test_a_killed_process_loses_no_point(
    start: Callable[..., Tracker], server: MlflowServer, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path), server.uri])
    assert done.returncode == 9
    other = start("another job", server.uri, key="k2")
    assert other.flush(60)
    other.close()
    client = client_of(server.uri)
    runs = runs_of(client, "killed")
    for key in ("loss", "f1"):
        assert sorted(steps(client, runs["model"], key)) == list(range(1, 2001))
    assert runs["model"].info.status == runs["killed"].info.status == "KILLED"
    assert not any((tmp_path / "tracking").iterdir())


def test_the_server_dies_and_returns_and_every_point_arrives_once(
    start: Callable[..., Tracker], server: MlflowServer, tmp_path: Path
) -> None:
    top = start("outage", server.uri)
    child = top.child("model", "m", "model")
    for epoch in range(1, 6):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    assert top.flush(30)
    server.kill()
    began = time.monotonic()
    for epoch in range(6, 11):
        child.metrics({"loss": 1 / epoch}, step=epoch)
    note = tmp_path / "note.txt"
    note.write_text("from the outage")
    child.artifact(note)
    late = top.child("late", "l", "model")
    late.metrics({"loss": 0.5}, step=1)
    assert time.monotonic() - began < 1.0
    assert late.record_id is None
    late.close()
    child.close()
    began = time.monotonic()
    top.close()
    assert time.monotonic() - began < 20
    assert any("does not answer" in text for text in start.said)  # type: ignore[attr-defined]
    assert any((tmp_path / "tracking").iterdir())

    other = start("other", server.uri, key="k2", required=False)
    other.metrics({"loss": 1.0}, step=1)
    assert other.record_id is None

    server.start()
    end = time.monotonic() + 60
    while not other.flush(5) and time.monotonic() < end:
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
    assert not any((tmp_path / "tracking").iterdir())


@pytest.mark.parametrize("answers", [False, True], ids=["closed port", "silent port"])
def test_a_server_that_does_not_answer_is_one_sentence_within_seconds(
    start: Callable[..., Tracker],
    answers: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen()
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(MultistillError) as caught:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:geheim99@127.0.0.1:{port}")
            start("nobody")
        assert time.monotonic() - began < 15
    text = str(caught.value)
    assert "does not answer" in text
    assert "tracking.required: false" in text
    assert "geheim99" not in text
    assert caught.value.exit_code == 1
    assert not any((tmp_path / "tracking").iterdir())


def test_a_deleted_experiment_is_said_at_the_start(
    start: Callable[..., Tracker], server: MlflowServer
) -> None:
    client = client_of(server.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(UsageError, match=r"deleted.*tracking\.experiment"):
        start("deleted", server.uri)


def test_the_caller_never_waits_for_the_store(
    start: Callable[..., Tracker], mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    top = start("many")
    began = time.monotonic()
    for number in range(40):
        trial = top.child(f"trial {number}", f"t{number}", "trial")
        for epoch in range(1, 11):
            trial.metrics({"f1": epoch / 10, "loss": 1 / epoch}, step=epoch)
        trial.params({"T": number})
        trial.close()
    assert time.monotonic() - began < 2.0
    assert top.flush(120)
    top.close()
    runs = runs_of(client_of(top.uri), "many")
    assert len(runs) == 41
    assert all(run.info.status == "FINISHED" for run in runs.values())


def test_the_champion_is_the_best_version_and_one_model_is_one_version(
    start: Callable[..., Tracker], server: MlflowServer, tmp_path: Path
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
    assert top.flush(60)
    top.close()
    client = client_of(server.uri)
    versions = client.search_model_versions("name = 'emotion-audio'")
    assert len(versions) == 4
    champion = client.get_model_version_by_alias("emotion-audio", "champion")
    assert champion.tags["valid_uar"] == "0.7"
    assert champion.run_id == runs_of(client, "registry")["b"].info.run_id
    local = client.download_artifacts(champion.run_id, "model", str(tmp_path))
    assert (Path(local) / "model.safetensors").read_text() == "b"
    assert sum("is the champion" in text for text in start.said) == 3  # type: ignore[attr-defined]


def test_a_champion_is_beaten_by_the_margin_and_on_its_own_data_only(
    start: Callable[..., Tracker], server: MlflowServer, tmp_path: Path
) -> None:
    def offer(run: Tracker, weights: str, value: float, data: str) -> None:
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
        offer(top, weights, value, data)
    assert top.flush(60)
    top.close()
    client = client_of(server.uri)
    champion = client.get_model_version_by_alias("ruled", "champion")
    assert champion.tags["valid_loss"] == "0.7" and champion.tags["multistill.data"] == "a"
    said = [text for text in start.said if text.startswith("ruled version")]  # type: ignore[attr-defined]
    assert ["is the champion" in text for text in said] == [True, False, False, True]
    assert "not beaten by 0.1" in said[1]
    assert "other data" in said[2] and "stays the champion" in said[2]


def test_a_version_found_again_says_what_was_measured_last(
    start: Callable[..., Tracker], server: MlflowServer, tmp_path: Path
) -> None:
    def offer(run: Tracker, weights: str, metric: str, value: float, seeds: int) -> None:
        folder = tmp_path / weights
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
        tags = {"multistill.seeds": str(seeds)}
        run.register("again", folder, metric, value, data="a", tags=tags)

    top = start("again", server.uri)
    offer(top, "first", "valid_uar", 0.9, 1)
    offer(top, "second", "valid_macro_f1", 0.1, 1)  # the champion has no such figure
    offer(top, "first", "valid_uar", 0.5, 3)
    offer(top, "third", "valid_uar", 0.6, 3)
    assert top.flush(60)
    top.close()
    client = client_of(server.uri)
    versions = client.search_model_versions("name = 'again'")
    first = next(v for v in versions if v.tags.get("valid_uar") == "0.5")
    assert first.tags["multistill.seeds"] == "3"
    champion = client.get_model_version_by_alias("again", "champion")
    assert champion.tags["valid_uar"] == "0.6" and len(versions) == 3
    said = [text for text in start.said if text.startswith("again version")]  # type: ignore[attr-defined]
    assert ["is the champion" in text for text in said] == [True, False, True, True]
    assert "nothing says what its valid_macro_f1 is" in said[1]


def test_no_secret_reaches_the_disk(
    start: Callable[..., Tracker],
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server.uri.replace("http://", "http://ann:geheim99@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    top = start("secret")
    top.params({"uri": address})
    top.tags({"uri": address})
    top.flush()
    for path in (tmp_path / "tracking").rglob("*"):
        if path.is_file():
            assert b"geheim99" not in path.read_bytes()
    assert "geheim99" not in top.uri
    top.close()
    run = runs_of(client_of(server.uri), "secret")["secret"]
    assert "geheim99" not in str(run.to_dictionary())
