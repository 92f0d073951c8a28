"""The jobs of a workspace: what is listed of each, and how one is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.evaluation_case import EvaluationCase
from helpers.finished_jobs import finish, key_of, note_as_run, report_of

from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.runs import find_run, flat_table, list_runs, page, terminal_table
from multistill.pipeline.variants import job_file
from multistill.workspace import Workspace, read_json


def code_of(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_finished_job_is_listed_with_its_figures(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    finish(evaluation_case, tmp_path, name="old")
    job = finish(evaluation_case, tmp_path, name="new")
    for at, name in enumerate(("old", "new")):
        [file] = (tmp_path / "jobs").glob(f"{name}-*")
        os.utime(file, (1e9 + at, 1e9 + at))
    rows = list_runs(tmp_path)
    assert [(row["job"], row["state"]) for row in rows] == [
        ("new", "finished"),
        ("old", "finished"),
    ]
    report = read_json(report_of(tmp_path, job) / "report.json")
    row = rows[0]
    assert row["variant"] == key_of(job)
    assert Path(row["report"]) == report_of(tmp_path, job)
    assert row["best_student"] == report["floor"]["student"]
    models = {model["name"]: model for model in report["models"]}
    for who, model in (
        ("best_student", models[report["floor"]["student"]]),
        ("teacher", models["teacher"]),
        ("majority", report["baseline"]),
    ):
        for metric in ("macro_f1", "uar"):
            assert row["figures"][who][metric] == model["metrics"][metric]["value"]
    assert row["protocol"]["short"] == "holdout by session" and row["test"]["sessions"] == 4
    for table in (terminal_table(rows), flat_table(rows)):
        assert len(table.rows) == 2
        assert all(len(cells) == len(table.columns) for cells in table.rows)


def test_a_job_of_dimensions_alone_has_its_figures_on_every_table(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    finish(evaluation_case, tmp_path, name="classes")
    [row] = list_runs(tmp_path)
    figures = {"teacher": {"ccc": 0.123}, "probe": {"ccc": 0.045}}
    alone = {**row, "job": "alone", "figures": figures}
    teacher = f"{row['figures']['teacher']['uar']:.3f}"
    for shown, text in (
        ([alone], ["0.123", "0.045", "CCC"]),
        ([row, alone], ["0.123", "0.045", "CCC", "UAR", teacher]),
        ([row], ["UAR", teacher]),
    ):
        for printed in (page(shown, tmp_path), str(flat_table(shown)), str(terminal_table(shown))):
            assert [each for each in text if each not in printed] == []
    assert "UAR" not in page([alone], tmp_path) and "CCC" not in page([row], tmp_path)


def test_an_unfinished_job_is_listed_with_the_stage_that_it_reached(tmp_path: Path) -> None:
    job = note_as_run(tmp_path, name="begun")
    workspace = Workspace(tmp_path)
    prepare = steps_of(job, workspace)[0]
    assert (list_runs(tmp_path)[0]["state"], list_runs(tmp_path)[0]["stage"]) == ("stopped", None)
    fingerprint = prepare.fingerprint({})
    with workspace.lock(f"prepare-{fingerprint}"):
        row = list_runs(tmp_path)[0]
        assert (row["state"], row["stage"]) == ("running", "prepare")
    assert list_runs(tmp_path)[0]["state"] == "stopped"


@pytest.mark.parametrize("kind", ["prepare", "reports/emo"])
def test_an_artifact_is_being_built_while_its_lock_is_held(tmp_path: Path, kind: str) -> None:
    workspace, seen = Workspace(tmp_path), []
    assert not workspace.is_building(kind, "0" * 16)

    def build(out: Path) -> None:
        seen.append(workspace.is_building(kind, "0" * 16))

    workspace.make(kind, "0" * 16, build)
    assert seen == [True]
    assert not workspace.is_building(kind, "0" * 16)


def test_nothing_hides_the_other_jobs(evaluation_case: EvaluationCase, tmp_path: Path) -> None:
    """A corpus that is gone, a report of another version, a file that is no job."""
    finish(evaluation_case, tmp_path, name="good")
    note_as_run(
        tmp_path, name="gone", corpora=[{"kind": "table", "path": str(tmp_path / "gone.csv")}]
    )
    bad = finish(evaluation_case, tmp_path, name="bad")
    (report_of(tmp_path, bad) / "report.json").write_text("{}")
    (tmp_path / "jobs" / f"broken-{'0' * 16}.yaml").write_text("a: [")
    rows = {row["job"]: row for row in list_runs(tmp_path)}
    assert rows.keys() == {"good", "gone", "bad"}
    assert rows["good"]["figures"]["teacher"]
    assert rows["gone"]["state"] == "unknown" and "gone.csv" in rows["gone"]["reason"]
    assert "is no report of this version" in rows["bad"]["reason"]
    assert code_of("runs", "--workspace", tmp_path) == 0


@pytest.mark.parametrize("kind", ["csv", "markdown", "latex", "html", None])
def test_the_commands_print_every_job(
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    kind: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, name="b", seed=9)
    more = [] if kind is None else ["--format", kind]
    for command in (["runs"], ["compare", "a", "b"], ["compare", "b"]):
        assert code_of(*command, "--workspace", tmp_path, *more) == 0
        text = capsys.readouterr().out
        assert "0.472" in text  # the teacher's macro F1
    assert code_of("compare", "a", "b", "--workspace", tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert code_of("runs", "--workspace", tmp_path, "--json") == 0
    assert {row["job"] for row in json.loads(capsys.readouterr().out)} == {"a", "b"}
    assert code_of("runs", "--workspace", tmp_path, "--json", "--format", "csv") == 2


def test_an_empty_workspace_has_no_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("runs", "--workspace", tmp_path) == 0
    assert "no job has run" in capsys.readouterr().out
    assert list_runs(tmp_path) == []


def test_a_report_is_named_by_folder_file_link_or_job(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    job = finish(evaluation_case, workspace, name="emo@home")
    folder, key = report_of(workspace, job), key_of(job)
    for text in (
        str(folder),
        str(folder / "report.json"),
        str(folder.parent / "latest"),
        "emo@home",
        f"emo@home@{key[:6]}",
    ):
        run = find_run(text, workspace)
        assert (run.job, run.key, run.folder) == ("emo@home", key, folder)
        assert run.predictions == workspace / "evaluate" / key / "predictions.parquet"
        assert run.settings["seed"] == 1024
    # A copy of the page's figures finds its predictions in the workspace that is named.
    copy = tmp_path / "mine.json"
    shutil.copy(folder / "report.json", copy)
    assert find_run(str(copy), workspace).predictions is not None
    assert find_run(str(copy), tmp_path / "other").predictions is None
    monkeypatch.chdir(folder.parent)
    assert find_run("latest", workspace).key == key


def test_several_jobs_of_a_name_need_the_fingerprint(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    keys = [key_of(finish(evaluation_case, tmp_path, name="emo", seed=seed)) for seed in (1, 2)]
    with pytest.raises(UsageError, match="name one as NAME@FINGERPRINT"):
        find_run("emo", tmp_path)
    for key in keys:
        assert find_run(f"emo@{key[:6]}", tmp_path).key == key
    assert job_file(tmp_path, "emo", keys[0]).exists()
