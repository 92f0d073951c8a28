"""Advice of the commands about jobs, variants, searches and files: provoked and followed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says, told

from multistill import pipeline
from multistill.cli.app import main
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import jobfile, searches
from multistill.pipeline.variants import choose, job_file
from multistill.workspace import fingerprint, write_atomic

JOB = "name: emo\nworkspace: {ws}\ncorpora: [{{kind: demo}}]\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that commands ran, each of which stops at once."""
    names: list[str] = []

    def run(job: Any, **_: object) -> None:
        names.append(job.name)
        raise UsageError("stopped here")

    monkeypatch.setattr(pipeline, "run", run)
    return names


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that ends with one."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code
    return capsys.readouterr().err


def note(workspace: Path, *overrides: str) -> str:
    """Note a job as having run; returns its fingerprint."""
    job = jobfile.parse(JOB.format(ws=workspace) + "search: true\n", "x.yaml", overrides)
    key = fingerprint("run", 1, job.identity(), {})
    write_atomic(job_file(workspace, job.name, key), job.to_yaml())
    return key


def test_advice_about_the_name_and_the_variant_of_a_job(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    resume, here = ["search", "resume"], ["--workspace", str(tmp_path)]
    says(
        "give its job file, or the right folder with --workspace",
        failed(capsys, *resume, "emo", "--workspace", str(tmp_path / "other")),
    )
    note(tmp_path)
    failed(capsys, *resume, "emo", *here)
    file = tmp_path / "emo.yaml"
    file.write_text(JOB.format(ws=tmp_path) + "search: true\n")
    failed(capsys, *resume, str(file))
    assert ran == ["emo", "emo"]
    key = note(tmp_path, "seed=7")
    says(
        "variants of `{}` ran in `{}`; name one {}: {}",
        error := failed(capsys, *resume, "emo", *here),
    )
    assert key[:6] in error
    failed(capsys, *resume, "emo", *here, "--variant", key[:6])
    assert choose(tmp_path, "emo", key[:6]).key == key
    wrong = [*resume, str(file), "--variant", key[:6]]
    says("is a job file; leave it out, or give the job's name", failed(capsys, *wrong))
    failed(capsys, *wrong[:-2])
    failed(capsys, *resume, "emo", *here, "--variant", key[:6])
    assert len(ran) == 5


def test_advice_about_the_search_of_a_job(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(ws=tmp_path / "ws"))
    says(
        "add a `search` section to a job of the recipe `distillation`",
        failed(capsys, "search", "resume", str(file)),
    )
    file.write_text(file.read_text() + "search: {trials: 3}\n")
    failed(capsys, "search", "resume", str(file))
    assert ran == ["emo"]
    says(
        "no search of `{}` is running in {}; start it with `multistill run`, then join it",
        failed(capsys, "search", "join", str(file)),
    )
    failed(capsys, "run", str(file))
    assert ran == ["emo", "emo"]
    error = failed(capsys, "search", "extend", str(file), "--trials", "2")
    says("so nothing is added to it; first run `multistill search resume {}`", error)
    [command] = re.findall(r"`multistill (search resume [^`]*)`", error)
    write_atomic(job_file(tmp_path / "ws", "emo", "0" * 16), file.read_text())
    failed(capsys, *shlex.split(command), "--workspace", str(tmp_path / "ws"))
    assert ran == ["emo"] * 3


def test_a_search_that_has_ended_is_extended(
    tmp_path: Path,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    note(tmp_path)
    monkeypatch.setattr(searches, "_search_of", lambda job: SimpleNamespace(state="done"))
    error = failed(capsys, "search", "join", "emo", "--workspace", str(tmp_path))
    says("so there is nothing to join; `multistill search extend {} --trials N` adds trials", error)
    [command] = re.findall(r"`multistill (search extend [^`]*)`", error)
    parts = shlex.split(command.replace("N", "3"))
    failed(capsys, *parts, "--workspace", str(tmp_path))
    assert ran == ["emo"]


def test_advice_about_the_stage_to_stop_at(tmp_path: Path) -> None:
    from multistill.pipeline.recipes import steps_of
    from multistill.pipeline.runner import _stage_index
    from multistill.workspace import Workspace

    steps = steps_of(jobfile.parse(JOB.format(ws=tmp_path), "x.yaml"), Workspace(tmp_path))
    with pytest.raises(UsageError) as refused:
        _stage_index(steps, "prepar")
    says("did you mean `{}`? The", refused.value)
    [near] = re.findall(r"did you mean `(\w+)`", str(refused.value))
    assert _stage_index(steps, near) == 0


def test_advice_about_files_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    main_ok("init", str(file))
    says("give another name, or --force to overwrite it", failed(capsys, "init", str(file)))
    main_ok("init", str(tmp_path / "another.yaml"))
    main_ok("init", str(file), "--force")
    folder = tmp_path / "jobs"
    main_ok("jobs", "--copy", str(folder))
    error = failed(capsys, "jobs", "--copy", str(folder))
    says("exists; remove it, or choose another --copy folder", error)
    main_ok("jobs", "--copy", str(tmp_path / "more"))
    for copy in folder.glob("*.yaml"):
        copy.unlink()
    main_ok("jobs", "--copy", str(folder))


def main_ok(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


def test_advice_after_an_unexpected_error_and_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(ws=tmp_path / "ws"))
    errors: list[BaseException] = [ValueError("odd"), ValueError("odd"), KeyboardInterrupt()]

    def run(*_: object, **__: object) -> None:
        raise errors.pop(0) if errors else MultistillError("the same command ran on")

    monkeypatch.setattr(pipeline, "run", run)
    says("run the command again with --debug for the traceback", failed(capsys, "run", str(file)))
    with pytest.raises(ValueError, match="odd"):
        main(["run", str(file), "--debug"])
    says("interrupted; run the same command to continue", failed(capsys, "run", str(file)))
    assert "ran on" in failed(capsys, "run", str(file))


def test_told_is_strict() -> None:
    with pytest.raises(AssertionError), told("use 0.15"):
        raise MultistillError("use 0.16")
