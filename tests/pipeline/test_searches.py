"""Commands and stages that messages name: complete, so that following them reaches the job."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from multistill import pipeline
from multistill.cli import run as commands
from multistill.cli.app import main
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline import jobfile, searches
from multistill.pipeline.recipes import RECIPES, get_recipe, steps_of
from multistill.pipeline.variants import job_file
from multistill.workspace import Workspace, fingerprint, write_atomic

JOB = "name: {name}\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\nsearch: {{trials: 3}}\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[JobConfig]:
    """Jobs up to the point where they would run."""
    jobs: list[JobConfig] = []

    def run(job: JobConfig, **_: object) -> None:
        jobs.append(job)
        raise UsageError("it would run now")

    monkeypatch.setattr(pipeline, "run", run)
    return jobs


def note(name: str, workspace: Path, *overrides: str) -> str:
    """Note a job as having run; returns its fingerprint."""
    text = JOB.format(name=name, workspace=workspace)
    job = jobfile.parse(text, "x.yaml", overrides)
    key = fingerprint("run", 1, job.identity(), {})
    write_atomic(job_file(workspace, job.name, key), job.to_yaml())
    return key


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


def command_in(message: str) -> list[str]:
    [command] = re.findall(r"`multistill (search [^`]*)`", message)
    return shlex.split(command)


@pytest.mark.parametrize("name", ["emo", "two words", "감정"])
@pytest.mark.parametrize("folder", ["workspace", "elsewhere", "with space#?"])
@pytest.mark.parametrize("variants", [1, 2])
@pytest.mark.parametrize("overrides", [(), ("search.concurrent=2",)])
def test_resuming_as_told_reaches_the_same_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran: list[JobConfig],
    capsys: pytest.CaptureFixture[str],
    name: str,
    folder: str,
    variants: int,
    overrides: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    key = note(name, tmp_path / folder)
    given = ["--workspace", folder] if folder != "workspace" else []
    if variants > 1:
        note(name, tmp_path / folder, "seed=7")
        given += ["--variant", key[:6]]
    given += [part for override in overrides for part in ("--set", override)]
    command = command_in(told(capsys, "search", "extend", name, "--trials", "2", *given))
    assert command[:3] == ["search", "resume", name]
    assert ("--workspace" in command) == (folder != "workspace"), "only what is needed"
    assert ("--variant" in command) == (variants > 1)
    assert "it would run now" in told(capsys, *command)
    [job] = ran
    assert fingerprint("run", 1, job.identity(), {}) == key
    assert job.search.concurrent == (2 if overrides else None)
    assert Workspace(job.workspace).root == tmp_path / folder
    # A finished search has nothing to join; it is extended as told.
    monkeypatch.setattr(searches, "_search_of", lambda job: SimpleNamespace(state="done"))
    command = command_in(told(capsys, "search", "join", name, *given))
    assert command[-2:] == ["--trials", "N"]
    assert "it would run now" in told(capsys, *command[:-1], "4")
    assert ran[1].search.trials == 7 and ran[1].workspace == job.workspace


def test_a_job_file_is_named_again(
    tmp_path: Path, ran: list[JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my job.yaml"
    file.write_text(JOB.format(name="emo", workspace=tmp_path / "ws"))
    command = command_in(told(capsys, "search", "extend", str(file), "--trials", "1"))
    assert command == ["search", "resume", str(file)]
    assert "it would run now" in told(capsys, *command)
    assert [job.name for job in ran] == ["emo"]


def test_the_variant_that_was_chosen_at_the_terminal_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran: list[JobConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {note("emo", tmp_path), note("emo", tmp_path, "seed=7")}
    terminal = SimpleNamespace(isatty=lambda: True, write=lambda text: None, flush=lambda: None)
    with monkeypatch.context() as asked:
        asked.setattr(commands, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
        asked.setattr(commands.typer, "prompt", lambda *_, **__: 2)
        given = ["--trials", "1", "--workspace", str(tmp_path)]
        message = told(capsys, "search", "extend", "emo", *given)
    command = command_in(message)
    assert command[command.index("--variant") + 1] in keys
    assert "it would run now" in told(capsys, *command)
    [job] = ran
    assert fingerprint("run", 1, job.identity(), {}) == command[command.index("--variant") + 1]


HEAD = "name: t\ncorpora: [{kind: demo}]\n"
STOPS = [
    # job file, stage, what is said, what to set
    ("", "search", "no stage `search`; add `search: true`", "search=true"),
    ("search: false\n", "search", "no stage `search`; add `search: true`", "search=true"),
    ("", "robustness", "set `evaluation.robustness: true`", "evaluation.robustness=true"),
    ("", "functionals", "set `evaluation.opensmile: ", "evaluation.opensmile=[egemaps]"),
    ("", "serch", "did you mean `search`? .*add `search: true`", None),
    ("", "probe", "of the recipe `features-only`.*set `recipe: f", "recipe=features-only"),
    ("recipe: features-only\n", "teacher", "set `recipe: distillation`", "recipe=distillation"),
    ("recipe: features-only\n", "search", "set `recipe: distillation`", None),
    ("", "techer", "did you mean `teacher`? The stages are prepare, ", None),
    ("", "xyz", "no such stage; the stages are prepare, ", None),
]


@pytest.mark.parametrize(("text", "stage", "said", "remedy"), STOPS)
def test_a_stage_that_the_job_lacks_is_told_with_what_to_add(
    tmp_path: Path, text: str, stage: str, said: str, remedy: str | None
) -> None:
    from multistill.pipeline.runner import _stage_index

    workspace = Workspace(tmp_path)
    job = jobfile.parse(HEAD + text, "t.yaml")
    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as refused:
        _stage_index(steps_of(job, workspace), stage)
    assert str(refused.value).startswith(f"--until {stage}: ")
    if remedy is not None:
        following = jobfile.parse(HEAD + text, "t.yaml", [remedy])
        assert _stage_index(steps_of(following, workspace), stage) >= 0


def test_every_stage_of_every_recipe_is_found_or_explained(tmp_path: Path) -> None:
    from multistill.pipeline.recipes import why_missing

    two = "name: t\ncorpora: [{kind: demo}, {kind: emodb, path: e}]\n"
    heads = {"pretrain": HEAD + "teacher: va-fusion\n", "continual": two}
    jobs = [
        jobfile.parse(heads.get(recipe, HEAD) + f"recipe: {recipe}\nsearch: {search}\n", "t.yaml")
        for recipe in RECIPES
        for search in ("true", "false")
        if recipe == "distillation" or search == "false"
    ]
    workspace = Workspace(tmp_path)
    every = {step.name for job in jobs for step in steps_of(job, workspace)}
    for job in jobs:
        own = {step.name for step in steps_of(job, workspace)}
        for stage in every:
            assert (why_missing(job, workspace, stage) is None) == (stage in own)
        assert not own & {*get_recipe(job.recipe).left_out(job)}
        assert why_missing(job, workspace, "no-such-stage") is None
