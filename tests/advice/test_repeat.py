"""Advice about repeated runs: provoked and followed, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says, told
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST

from multistill import provenance
from multistill.cli import run as command
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.pipeline.repeat import Comparison, Repetition
from multistill.tracking import recorded
from multistill.tracking.recorded import RecordedRun, recorded_run

URI = "http://mlflow.lab"
JOB = "name: small\ncorpora: [{kind: demo}]\n"


class Client:
    """What a tracking server holds: runs by their id, and files of job folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = {"mine": "name: small\n", "theirs": ""}
        self.is_away = False

    def get_run(self, run_id: str) -> Any:
        if self.is_away:
            raise MlflowException("away", INTERNAL_ERROR)
        if run_id not in self.runs:
            raise MlflowException("none", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, run_name=f"run {run_id}"),
            data=SimpleNamespace(tags={}, metrics={}),
        )

    def list_artifacts(self, run_id: str, folder: str) -> list[Any]:
        files = [SimpleNamespace(path=f"{folder}/small.yaml", is_dir=False, file_size=10)]
        return files if self.runs[run_id] else []

    def download_artifacts(self, run_id: str, path: str, into: str) -> str:
        file = Path(into) / "small.yaml"
        file.write_text(self.runs[run_id])
        return str(file)


def test_finding_a_recorded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(tmp_path)
    monkeypatch.setattr(recorded, "Server", lambda *_: SimpleNamespace(client=client))
    with told(
        "the tracking database {} cannot be read: {}; name the database or server", UsageError
    ):
        recorded_run(f"sqlite:///{tmp_path}/none.db", "mine")
    with told("there is no run `{}` on {} ({}); copy its id from its page in MLflow", UsageError):
        recorded_run(URI, "min")
    with told("holds no job file below `{}/` that this machine can read; choose", UsageError):
        recorded_run(URI, "theirs")
    client.is_away = True
    with told("check that the server runs and lets you read, or name another", UsageError):
        recorded_run(URI, "mine")
    client.is_away = False
    assert recorded_run(URI, "runs:/mine").job == "name: small\n"


def run_of(**values: Any) -> RecordedRun:
    return replace(RecordedRun("id", "name", "ann", "uri", JOB, {}, "", {}), **values)


def test_what_differs_from_the_recorded_run(tmp_path: Path) -> None:
    old = {"multistill": "0.0.1", "torch": "0.0.1"}
    strict = Repetition(run_of(versions=old, data="votes"), strict=True)
    with told("install the recorded ones, or leave out --strict", UsageError):
        strict.describe_versions()
    with told("{}; set the corpora's paths to the recorded data", MultistillError):
        strict.describe_data("other votes")
    lenient = replace(strict, strict=False)
    assert "torch" in lenient.describe_versions() and "differ" in lenient.describe_data("other")
    installed = Repetition(run_of(versions={"torch": provenance.versions()["torch"]}), strict=True)
    assert "recorded ones" in installed.describe_versions()
    assert "recorded ones" in strict.describe_data("votes")


def test_a_job_file_of_another_version(tmp_path: Path) -> None:
    text = JOB + "split: {new_key: 1}\n"
    repetition = Repetition(run_of(job=text, versions={"multistill": "0.0.1"}))
    with told("install that version, or change what is named with --set", JobFileError):
        repetition.job((), tmp_path)
    same = Repetition(run_of(job=JOB, versions={"multistill": "0.0.1"}))
    assert same.job((), tmp_path).name == "small"


def test_a_repetition_in_a_workspace_that_has_everything() -> None:
    run = run_of(figures={"test_teacher_uar": 0.5})
    cached = Comparison(run, run.figures, {}, worked=False)
    says("so this repeats nothing: give an empty folder with --workspace", cached.sentence())
    assert "repeats nothing" not in Comparison(run, run.figures, {}, worked=True).sentence()


def test_options_that_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    with told("give a job file, or a recorded run with --from", UsageError):
        command.run(None)
    with told("--from repeats a recorded job; leave out the job file", UsageError):
        command.run(job, recorded="mine")
    with told("belongs to --from; name a recorded run, or leave it out", UsageError):
        command.run(job, strict=True)
    ran: list[str] = []
    monkeypatch.setattr(command, "_run", lambda job, **_: ran.append(job.name))
    monkeypatch.setattr(command, "_repeat", lambda run_id, *_: ran.append(run_id))
    command.run(job)
    command.run(None, recorded="mine", strict=True)
    assert ran == ["small", "mine"]
