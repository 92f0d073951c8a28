"""What runs tell a workspace of themselves, and what `runs` and a cluster's list make of it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.evaluation_case import make_job
from helpers.finished_jobs import key_of, note_as_run
from rich.console import Console

from multistill import cluster
from multistill.cli.app import main
from multistill.cluster import job_list
from multistill.config import JobConfig
from multistill.errors import MultistillError
from multistill.pipeline.drivers import Driver, StatusLogger, latest_by_variant, read_drivers
from multistill.pipeline.garbage import find_garbage
from multistill.pipeline.running import on_cluster, progress_text, running_table
from multistill.pipeline.runs import list_runs
from multistill.report.tables import to_terminal
from multistill.tracking.owner import SUBMITTER
from multistill.workspace import Workspace, read_json

CHILD = """
import sys, time
from multistill.config import JobConfig
from multistill.pipeline.drivers import Driver
from multistill.workspace import Workspace
import yaml
job = JobConfig.model_validate(yaml.safe_load(open(sys.argv[1])))
with Driver(Workspace(job.workspace), job, sys.argv[2]) as driver:
    driver.works()
    driver.stage("students")
    print("works", flush=True)
    time.sleep(600)
"""


def code_of(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def driver_of(job: JobConfig, **options: Any) -> Driver:
    return Driver(Workspace(job.workspace), job, key_of(job), **options)


def until(condition: Any, seconds: float = 60.0) -> Any:
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_a_running_job_is_listed_with_owner_stage_progress_time_left_and_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USER", "kim")
    monkeypatch.setenv("LOGNAME", "kim")
    monkeypatch.setattr("multistill.pipeline.drivers.WRITE_SECONDS", 0.01)
    job, now = note_as_run(tmp_path, name="emo"), [100.0]
    page = "https://mlflow.example.org/#/experiments/1/runs/ab"
    with driver_of(job, clock=lambda: now[0]) as driver:
        driver.works()
        driver.link(mlflow=page)
        driver.stage("students")
        logger = (
            StatusLogger(driver, "emo").child("students", "s", "stage").child("a", "a", "model")
        )
        logger.progress(1, 5, "epochs")
        now[0] += 30
        logger.progress(2, 5, "epochs", running="a 1/2, b 1/3")
        [row] = until(lambda: [r for r in list_runs(tmp_path) if r["seconds_left"]])
        assert (row["state"], row["stage"], row["owner"]) == ("running", "students", "kim")
        figures = {"name": "a", "done": 2, "total": 5, "unit": "epochs"}
        assert row["progress"] == {**figures, "running": "a 1/2, b 1/3"}
        assert progress_text(row) == "a 2/5 epochs\na 1/2, b 1/3"
        assert row["seconds_left"] == 90
        assert (row["pid"], row["links"]["mlflow"]) == (os.getpid(), page)
        assert code_of("runs", "--workspace", tmp_path) == 0
        shown = capsys.readouterr().out
        for text in ("kim", "running: students", "a 2/5 epochs", "0:01:30 left", page):
            assert text in shown
        logger.progress(3, 5, "epochs", seconds_left=7.4)
        until(lambda: list_runs(tmp_path)[0]["seconds_left"] == 7)
    [row] = list_runs(tmp_path)
    assert (row["state"], row["progress"], row["seconds_left"]) == ("stopped", None, None)
    assert (row["owner"], row["links"]["mlflow"]) == ("kim", page)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (MultistillError("the loss is NaN; see https://u:geheim@h"), "failed", "the loss is NaN"),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_how_a_run_ended_is_kept_without_secrets(
    tmp_path: Path, error: BaseException, state: str, reason: str | None
) -> None:
    job = note_as_run(tmp_path)
    with pytest.raises(type(error)), driver_of(job) as driver:
        driver.works()
        driver.stage("teacher")
        raise error
    [row] = list_runs(tmp_path)
    assert (row["state"], row["stage"]) == (state, "teacher")
    assert (row["reason"] or "").startswith(reason or "") and bool(row["reason"]) == bool(reason)
    assert "geheim" not in json.dumps(row)


def test_a_killed_run_is_told_by_its_lock_and_replaced_by_the_next(tmp_path: Path) -> None:
    job = note_as_run(tmp_path)
    file, key = tmp_path / "job.yaml", key_of(job)
    file.write_text(job.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), key], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    until(lambda: list_runs(tmp_path)[0]["stage"] == "students")
    assert list_runs(tmp_path)[0]["state"] == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    [row] = list_runs(tmp_path)
    assert (row["state"], row["stage"], row["pid"]) == ("killed", "students", process.pid)
    with driver_of(job):  # finds everything there already: the killed one stays to be shown
        assert latest_by_variant(read_drivers(tmp_path))[key].alive
    assert list_runs(tmp_path)[0]["state"] == "killed"
    with driver_of(job) as driver:
        driver.works()
        assert len(read_drivers(tmp_path)) == 1
    assert list_runs(tmp_path)[0]["state"] == "stopped"


def test_a_damaged_status_hides_no_other(tmp_path: Path) -> None:
    job = note_as_run(tmp_path)
    with driver_of(job) as driver:
        driver.works()
        for name, text in (
            ("a", "{"),
            ("b", "[]"),
            ("c", '{"format": 99}'),
            ("d", '{"format": 1}'),
        ):
            (tmp_path / "drivers" / name).mkdir()
            (tmp_path / "drivers" / name / "status.json").write_text(text)
        assert [found.folder for found in read_drivers(tmp_path)] == [driver.folder]


def test_a_run_goes_on_where_it_cannot_register(tmp_path: Path) -> None:
    job = note_as_run(tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "drivers.lock").mkdir()  # as little of use as another account's file
    with driver_of(job) as driver:
        driver.works()
        assert [found.folder for found in read_drivers(tmp_path)] == [driver.folder]
    blocked = tmp_path / "blocked"
    job = note_as_run(blocked)
    (blocked / "drivers").write_text("")
    with driver_of(job) as driver:
        driver.works()
        driver.stage("teacher")
    assert read_drivers(blocked) == []


def jobs_of_ray(workspace: Path) -> list[Any]:
    def info(submission: str | None, status: str, metadata: Any, start: int | None) -> Any:
        return SimpleNamespace(
            submission_id=submission,
            status=SimpleNamespace(value=status),
            message=f"{status} it is",
            metadata=metadata,
            start_time=start,
            end_time=None,
        )

    said = {"multistill": "1", "owner": "lee", "host": "laptop", "workspace": str(workspace)}
    return [
        info("multistill-old-1", "FAILED", {"job": "old", "multistill": "0.1"}, 1_000_000),
        info("multistill-emo-2", "RUNNING", {"job": "emo", **said}, 2_000_000),
        info("multistill-next-3", "PENDING", {"job": "next", **said}, None),
        info("somebody-elses", "RUNNING", None, 3_000_000),
        info(None, "RUNNING", {}, 4_000_000),
    ]


def test_jobs_of_a_cluster_are_joined_with_what_their_workspaces_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        cluster, "submitted", lambda address: job_list.rows(jobs_of_ray(tmp_path), address)
    )
    monkeypatch.setattr("multistill.pipeline.drivers.WRITE_SECONDS", 0.01)
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "multistill-emo-2")
    monkeypatch.setenv(SUBMITTER, "lee@laptop")
    job = note_as_run(tmp_path, name="emo")
    address = "http://head:8265"
    with driver_of(job) as driver:
        driver.works()
        driver.stage("features")
        driver.progress("emo", 40, 100, "clips", 12.0, "")
        rows = until(
            lambda: [r for r in [on_cluster(address, tmp_path / "none")] if r[1]["progress"]]
        )[0]
        assert [(row["job"], row["state"]) for row in rows] == [
            ("next", "waiting"),
            ("emo", "running"),
            ("old", "failed"),
        ]
        assert (rows[1]["owner"], rows[1]["host"], rows[1]["stage"]) == (
            "lee",
            "laptop",
            "features",
        )
        assert rows[1]["pid"] == os.getpid() and rows[1]["variant"] == key_of(job)
        assert rows[1]["links"]["ray_dashboard"] == f"{address}/#/jobs/multistill-emo-2"
        assert (rows[2]["owner"], rows[2]["reason"]) == (None, "FAILED it is")
        assert list_runs(tmp_path)[0]["owner"] == "lee"
        assert code_of("runs", "--address", address, "--workspace", tmp_path) == 0
        shown = capsys.readouterr().out
        for text in ("lee", "running: features", "40/100 clips", "0:00:12 left", "waiting"):
            assert text in shown
        assert code_of("runs", "--address", address, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)) == 3
        for width in (80, 120):
            console = Console(width=width, file=io.StringIO(), record=True)
            console.print(to_terminal(running_table(rows)))
            assert "running: features" in console.export_text()


@pytest.mark.parametrize("more", [["--watch", "--json"], ["--address", "h", "--format", "csv"]])
def test_options_that_exclude_each_other_are_refused(tmp_path: Path, more: list[str]) -> None:
    assert code_of("runs", "--workspace", tmp_path, *more) == 2


def test_a_submission_says_who_sent_it_and_has_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim-token")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim-wort")
    said = job_list.submission_metadata(make_job(name="emo", workspace=str(tmp_path)))
    assert said["job"] == "emo" and said["owner"] and said["host"]
    assert all(isinstance(value, str) for value in said.values())
    assert "geheim" not in json.dumps(said)


def test_the_folder_of_a_driver_can_be_read_by_colleagues(tmp_path: Path) -> None:
    job = note_as_run(tmp_path)
    with driver_of(job) as driver:
        for name in ("lock", "status.json", "job.yaml"):
            assert (driver.folder / name).stat().st_mode & 0o044 == 0o044
        assert read_json(driver.folder / "status.json")["job"] == job.name


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("links",), []),
        (("links", "mlflow"), 7),
        (("stages",), [{"name": "prepare"}]),
        (("stages",), 3),
        (("started",), "yesterday"),
        (("progress",), {"name": "a", "done": None, "total": 2, "unit": "epochs", "running": ""}),
        (("seconds_left",), 1e300),
        (("owner",), {}),
        (("submission_id",), ["x"]),
    ],
)
def test_an_altered_status_is_left_out_of_every_list(
    where: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    job = note_as_run(tmp_path)
    with driver_of(job) as driver:
        driver.works()
        file = driver.folder / "status.json"
        assert [found.variant for found in read_drivers(Path(job.workspace))] == [key_of(job)]
    content = read_json(file)
    holder = content
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    file.write_text(json.dumps(content))
    assert read_drivers(Path(job.workspace)) == []
    assert [row["owner"] for row in list_runs(Path(job.workspace))] == [None]
    kept = find_garbage(Path(job.workspace), 0.0).kept
    assert kept == {file.parent: "its status cannot be read"}
