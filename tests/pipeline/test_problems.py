"""What a stage needs outside the workspace is looked at before anything is made."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from multistill import doctor, pipeline
from multistill.cli.app import main
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe

UNREACHABLE = [
    ("sqlite:////no/such/folder/x.db", "/no/such/folder does not exist"),
    ("postgresql://ann@127.0.0.1:1/studies", "check the address and that the server runs"),
    ("mysql://ann@127.0.0.1/studies", "pip install mysqlclient"),
    ("studies.db", "is not an address"),
]


@pytest.mark.parametrize(("address", "reason"), UNREACHABLE)
def test_a_search_storage_is_looked_at_by_run_plan_and_doctor(
    tmp_path: Path, address: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    workspace = tmp_path / "ws"
    file.write_text(
        f"name: x\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\n"
        f"search: {{storage: '{address}'}}\n"
    )
    job = jobfile.load(file)
    with pytest.raises(UsageError, match=r"search\.storage") as refused:
        pipeline.run(job)
    assert reason in str(refused.value)
    made = {path.name for path in workspace.iterdir()}
    assert made == {"drivers", "locks"}, "nothing was prepared, recorded or trained"
    with pytest.raises(SystemExit) as end:
        main(["plan", str(file), "--json"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert reason in json.loads(printed.out)["problems"][0]
    assert reason in printed.err
    [finding] = doctor._stages(job)
    assert not finding.ok
    assert reason in finding.sentence + finding.fix
    # Following the advice.
    for storage in (f"sqlite:///{tmp_path}/study.db", "null"):
        fixed = jobfile.load(file, [f"search.storage={storage}"])
        assert describe(fixed)["problems"] == []
        assert [finding.ok for finding in doctor._stages(fixed)] == [True]
    assert not (tmp_path / "study.db").exists(), "looking at it creates nothing"


def test_a_stage_that_does_not_run_is_not_looked_at(tmp_path: Path) -> None:
    job = jobfile.parse(
        f"name: x\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n"
        "search: {storage: 'sqlite:////no/such/folder/x.db'}\n",
        "x.yaml",
    )
    outcome = pipeline.run(job, until="prepare")
    assert list(outcome.stages) == ["prepare"]


UNUSABLE = [
    ("sqlite:////no/such/folder/x.db", "/no/such/folder does not exist"),
    ("postgresql://ann@127.0.0.1:1/runs", "check the address and that the server runs"),
    ("runs", "is a folder, which MLflow no longer supports"),
    ("file:/tmp/runs", "is a folder, which MLflow no longer supports"),
]


@pytest.mark.parametrize("by_environment", [False, True])
@pytest.mark.parametrize(("address", "reason"), UNUSABLE)
def test_the_database_of_the_records_is_looked_at_by_plan_and_run(
    tmp_path: Path,
    address: str,
    reason: str,
    by_environment: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, workspace = tmp_path / "job.yaml", tmp_path / "ws"
    file.write_text(f"name: x\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\n")
    if by_environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        overrides = []
    else:
        overrides = [f"tracking.uri={address}"]
    sets = [part for override in overrides for part in ("--set", override)]
    with pytest.raises(SystemExit) as end:
        main(["plan", str(file), "--json", *sets])
    assert end.value.code == 2
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["tracking"] == address
    assert reason in facts["problems"][0] and reason in printed.err
    assert not workspace.exists(), "plan writes nothing"
    with pytest.raises(MultistillError) as refused:
        pipeline.run(jobfile.load(file, overrides))
    assert reason in str(refused.value), "plan and run say the same"
    # Following the advice: an address that works, or records that wait.
    usable = ["--set", f"tracking.uri=sqlite:///{tmp_path}/runs.db"]
    with pytest.raises(SystemExit) as end:
        main(["plan", str(file), *usable])
    assert end.value.code == 0
    assert not (tmp_path / "runs.db").exists(), "looking at it creates nothing"


def test_plan_names_where_runs_are_recorded_and_waits_for_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"name: x\nworkspace: {tmp_path / 'ws'}\ncorpora: [{{kind: demo}}]\n"
    job = jobfile.parse(text, "x.yaml")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert describe(job)["tracking"] == f"sqlite:///{tmp_path}/ws/mlflow.db"
    assert describe(job)["problems"] == []
    # An address of documentation networks, which never answers, with a password.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:geheim@192.0.2.1:5000")
    started = time.monotonic()
    facts = describe(job)
    assert time.monotonic() - started < 3
    assert facts["tracking"] == "http://ann:***@192.0.2.1:5000"
    assert facts["problems"] == []
    assert "geheim" not in json.dumps(facts)
    # What the job file says comes first, as in the run.
    own = jobfile.parse(text + "tracking: {uri: 'https://mlflow.lab'}\n", "x.yaml")
    assert describe(own)["tracking"] == "https://mlflow.lab"
    # Where records may wait, a database that is away for now is no problem.
    waits = "tracking: {uri: 'sqlite:////no/such/folder/x.db', required: false}\n"
    assert describe(jobfile.parse(text + waits, "x.yaml"))["problems"] == []
