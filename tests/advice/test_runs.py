"""Advice of the commands that list and compare jobs: provoked and followed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.advice import says
from helpers.evaluation_case import EvaluationCase
from helpers.finished_jobs import finish, key_of, note_as_run, report_of

from multistill import pipeline
from multistill.cli.app import main
from multistill.pipeline.drivers import Driver
from multistill.workspace import Workspace


def ended(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """What a command that ends with this code prints; errors are one sentence on one line."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == (1 if code else 0)
    return printed.err if code else printed.out


def test_the_workspace_of_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note_as_run(tmp_path, name="emo")
    error = ended(capsys, "runs", "--workspace", tmp_path / "other")
    says("there is no workspace `{}`; give the right folder with --workspace", error)
    assert "emo" in ended(capsys, "runs", "--workspace", tmp_path, code=0)


def test_the_list_watched_or_of_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    note_as_run(tmp_path, name="emo")
    here = ["runs", "--workspace", tmp_path]
    error = ended(capsys, *here, "--watch", "--json")
    says("--watch shows a table on the terminal; leave out --json and --format", error)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multistill.cli.results.time.sleep", interrupt)
    assert "emo" in ended(capsys, *here, "--watch", code=0)
    error = ended(capsys, *here, "--address", "http://head:8265", "--format", "csv")
    says("--format is for the jobs of a workspace; use --json with --address", error)
    monkeypatch.setattr("multistill.cluster.submitted", lambda address: [])
    assert ended(capsys, *here, "--address", "http://head:8265", "--json", code=0) == "[]\n"


def test_the_age_of_what_may_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["gc", "--workspace", tmp_path]
    error = ended(capsys, *here, "--older-than", "7 days")
    says("is no age; give a number with s, m, h, d or w, such as 7d", error)
    assert "nothing to delete" in ended(capsys, *here, "--older-than", "7d", code=0)


def test_a_job_to_forget_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = note_as_run(tmp_path, name="emo")
    here = ["gc", "--workspace", tmp_path, "--forget", "emo"]
    with Driver(Workspace(tmp_path), job, key_of(job)):
        says("it runs on {} (process {}); stop it first", ended(capsys, *here))
    assert "nothing was deleted" in ended(capsys, *here, code=0)


def test_two_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note_as_run(tmp_path, name="emo")
    here, formats = ["runs", "--workspace", tmp_path], (["--json"], ["--format", "csv"])
    error = ended(capsys, *here, *formats[0], *formats[1])
    says("--json and --format are two formats of the same result; leave one out", error)
    for one in formats:
        assert "emo" in ended(capsys, *here, *one, code=0)


@pytest.mark.parametrize("problem", ["does not exist", "is no report of this", "cannot be read"])
def test_a_file_that_is_no_report(
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = finish(evaluation_case, tmp_path, name="emo")
    file = tmp_path / "report.json"
    content = {"does not exist": None, "is no report of this": "[]", "cannot be read": "{"}[problem]
    if content is not None:
        file.write_text(content)
    here = ["--workspace", tmp_path]
    error = ended(capsys, "compare", file, *here)
    assert problem in error
    says("{} {}; give the folder of a report, or the name of a job that ran in `{}`", error)
    for right in (report_of(tmp_path, job), "emo"):
        assert "teacher" in ended(capsys, "compare", right, *here, code=0)


def test_a_job_without_a_report(
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = tmp_path / "my workspace"
    job = note_as_run(workspace, name="emo")
    error = ended(capsys, "compare", "emo", "--workspace", workspace)
    says("run `{}` to finish the job", error)
    [command] = re.findall(r"run `multistill (.*)` to", error)

    def run(found: Any, **_: object) -> Any:
        """The stages are not run here: what they would leave is put there."""
        assert key_of(found) == key_of(job) and Path(found.workspace) == workspace
        finish(evaluation_case, workspace, name="emo")
        raise SystemExit(0)

    monkeypatch.setattr(pipeline, "run", run)
    ended(capsys, *shlex.split(command), code=0)
    assert "teacher" in ended(capsys, "compare", "emo", "--workspace", workspace, code=0)


def test_jobs_of_other_classes(
    evaluation_case: EvaluationCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, name="b", classes={"happy": "joy"})
    finish(evaluation_case, tmp_path, name="c", classes={"happy": "joy"}, seed=3)
    here = ["--workspace", tmp_path]
    error = ended(capsys, "compare", "a", "b", *here)
    says("so their figures mean different things; compare jobs of the same `labels`", error)
    assert "minus b" in ended(capsys, "compare", "b", "c", *here, code=0)
