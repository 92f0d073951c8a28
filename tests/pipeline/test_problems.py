"""What a stage needs outside the workspace is looked at before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multistill import doctor, pipeline
from multistill.cli.app import main
from multistill.errors import UsageError
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
    assert list(workspace.iterdir()) == [], "nothing was prepared, recorded or trained"
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
