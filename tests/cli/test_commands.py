"""The command line: quick, thin, one sentence and the right code for every mistake."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from multistill.cli import main
from multistill.cli.app import EXAMPLES, app
from multistill.errors import MultistillError

HEAVY = (
    "torch",
    "ray",
    "mlflow",
    "transformers",
    "pandas",
    "scipy",
    "sklearn",
    "optuna",
    "matplotlib",
)


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(filter(None, done.stdout.splitlines()[-1].split(",")))


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    code = "import multistill, multistill.cli, multistill.config, multistill.workspace"
    assert loaded_after(code) == set()


def test_help_pulls_in_nothing_heavy() -> None:
    code = (
        "from multistill.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code"
    )
    assert loaded_after(code) == set()


@pytest.mark.parametrize("example", [each for some in EXAMPLES.values() for each in some])
def test_examples_of_the_help_are_commands_with_these_options(example: str) -> None:
    program, name, *arguments = shlex.split(example.rpartition("|")[2])
    assert program == "multistill"
    commands: Any = typer.main.get_command(app)
    context = commands.commands[name].make_context(name, list(arguments))
    assert context.params["model"] in arguments


def test_reading_a_job_file_imports_neither_torch_nor_ray() -> None:
    code = (
        "from multistill.pipeline import jobfile\n"
        "jobfile.parse('name: t\\ncorpora: [{kind: demo}]', 'job.yaml')"
    )
    assert loaded_after(code) & {"torch", "ray", "mlflow", "transformers"} == set()


def test_what_a_finished_job_needs_to_end_pulls_in_neither_torch_nor_scipy_nor_pandas() -> None:
    code = (
        "import multistill.cli.run, multistill.pipeline, multistill.pipeline.steps\n"
        "import multistill.report.files, multistill.report.terminal\n"
        "import multistill.tracking.console, multistill.tracking.recorded"
    )
    assert loaded_after(code) & {"torch", "scipy", "pandas"} == set()


def test_the_page_on_a_manifest_pulls_in_nothing_that_draws_or_tests() -> None:
    code = "import multistill.report.data_page"
    assert loaded_after(code) & {"torch", "scipy", "sklearn", "matplotlib"} == set()


def code_of(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def job(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return str(path)


def test_a_valid_job_file_is_reported_as_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")
    assert code_of(["validate", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


def test_validate_lists_every_problem_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, "name: t\ncorpora: [{kind: demo}]\nsead: 1\nsplit: {tset: 0.1}\n")
    assert code_of(["validate", path, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [problem["line"] for problem in found["problems"]] == [3, 4]
    assert code_of(["validate", path]) == 2
    text = capsys.readouterr().err
    assert f"{path}:3: unknown key `sead`; did you mean `seed`?" in text
    assert "Traceback" not in text


def test_unknown_stage_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")
    assert code_of(["run", path, "--until", "techer"]) == 2
    assert "did you mean `teacher`?" in capsys.readouterr().err


def test_missing_corpus_folder_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, "name: t\ncorpora: [{kind: emodb, path: /nowhere/emodb}]\n")
    assert code_of(["run", path, "--workspace", str(tmp_path / "w")]) == 2
    text = capsys.readouterr().err
    assert "/nowhere/emodb" in text
    assert "Traceback" not in text


def test_set_is_repeated_for_several_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")
    assert code_of(["validate", path, "--set", "seed=7", "--set", "search.trials=3"]) == 0
    assert code_of(["validate", path, "--set", "seed=7", "--set", "search.trails=3"]) == 2
    assert "unknown key `search.trails`" in capsys.readouterr().err


def test_every_command_has_json_and_debug(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from multistill.cli.app import app

    def options(command: object, path: str = "multistill") -> dict[str, set[str]]:
        commands = getattr(command, "commands", None)
        if commands is None:
            return {path: {o for p in command.params for o in p.opts}}  # type: ignore[attr-defined]
        return {k: v for n, c in commands.items() for k, v in options(c, f"{path} {n}").items()}

    found = options(typer.main.get_command(app))
    assert len(found) >= 15
    for name, flags in found.items():
        assert {"--json", "--debug"} <= flags, name


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import multistill

    assert code_of(["--version"]) == 0
    assert capsys.readouterr().out == f"multistill {multistill.__version__}\n"


def test_packaged_jobs_are_listed_and_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["jobs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"demo", "emodb", "kemdy", "paper", "search"} <= {row["job"] for row in listed}
    assert all(row["summary"].endswith(".") for row in listed), "a whole sentence"
    assert code_of(["jobs", "demo", "--copy", str(tmp_path / "mine")]) == 0
    copied = tmp_path / "mine" / "demo.yaml"
    assert capsys.readouterr().out == f"{copied}\n"
    assert code_of(["validate", str(copied)]) == 0
    copied.write_text("name: edited\n")
    capsys.readouterr()
    assert code_of(["jobs", "demo", "--copy", str(tmp_path / "mine")]) == 2
    assert "exists" in capsys.readouterr().err and copied.read_text() == "name: edited\n"
    assert code_of(["jobs", "nothing"]) == 2


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["recipes", "--json"]) == 0
    found = [row["recipe"] for row in json.loads(capsys.readouterr().out)]
    assert found[:2] == ["distillation", "features-only"]


def test_an_unknown_recipe_and_a_section_that_none_of_its_stages_reads_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, "name: t\nrecipe: distilation\ncorpora: [{kind: demo}]\n")
    assert code_of(["validate", path]) == 2
    assert f"{path}:2: recipe: there is no recipe `distilation`" in capsys.readouterr().err
    path = job(
        tmp_path,
        "name: t\nrecipe: features-only\ncorpora: [{kind: demo}]\nteacher: {seeds: 3}\n",
    )
    assert code_of(["validate", path]) == 2
    assert f"{path}:4: no stage of the recipe `features-only` reads" in capsys.readouterr().err
    for enabled, code in (("true", 2), ("false", 0)):
        text = "name: t\nrecipe: features-only\ncorpora: [{kind: demo}]\n"
        path = job(tmp_path, f"{text}search: {{enabled: {enabled}}}\n")
        assert code_of(["validate", path]) == code


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MultistillError("the disk is full; free some"), 1, "the disk is full; free some"),
        (ValueError("odd"), 1, "unexpected ValueError: odd; run the command again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_sentence(
    error: BaseException,
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from multistill import pipeline

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    assert code_of(["run", job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")]) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


def test_our_error_inside_a_ray_error_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multistill import pipeline

    class WrappedError(RuntimeError):
        cause = MultistillError("3 clips of 4 failed; see quarantine.parquet")

    def fail(*_: object, **__: object) -> None:
        raise WrappedError("long text of a remote traceback")

    monkeypatch.setattr(pipeline, "run", fail)
    assert code_of(["run", job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")]) == 1
    assert capsys.readouterr().err == "multistill: 3 clips of 4 failed; see quarantine.parquet\n"


def test_only_the_cause_is_printed_if_the_ray_error_is_of_our_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multistill import pipeline

    class DualError(MultistillError):
        cause = MultistillError("the test split has no clip")

    def fail(*_: object, **__: object) -> None:
        raise DualError("ray::evaluate()\n  File ..., line 1, in ...")

    monkeypatch.setattr(pipeline, "run", fail)
    assert code_of(["run", job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")]) == 1
    assert capsys.readouterr().err == "multistill: the test split has no clip\n"


def test_resume_finds_the_job_of_exactly_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multistill import pipeline

    jobs = tmp_path / "w" / "jobs"
    jobs.mkdir(parents=True)
    for name, key in (("emo", "0" * 16), ("emo-large", "1" * 16)):  # the longer one is newer
        text = f"name: {name}\ncorpora: [{{kind: demo}}]\nsearch: true\n"
        (jobs / f"{name}-{key}.yaml").write_text(text)
    ran: list[str] = []

    def note(config: object, **_: object) -> None:
        ran.append(config.name)  # type: ignore[attr-defined]
        raise MultistillError("stopped here")

    monkeypatch.setattr(pipeline, "run", note)
    where = ["--workspace", str(tmp_path / "w")]
    assert code_of(["search", "resume", "emo", *where]) == 1
    assert ran == ["emo"]
    capsys.readouterr()
    assert code_of(["search", "resume", "em", *where]) == 2
    assert "no job called `em`" in capsys.readouterr().err
    assert code_of(["search", "extend", "emo", "--trials", "5", *where]) == 2
    assert "search resume emo" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resume", "extend", "join"])
def test_a_job_without_a_search_is_not_run_by_the_commands_of_searches(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from multistill import pipeline

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("the job was run"))
    more = ["--trials", "5"] if command == "extend" else []
    path = job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n")
    assert code_of(["search", command, path, *more]) == 2
    assert "`t` has no search" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multistill import pipeline

    def fail(*_: object, **__: object) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(ValueError, match="odd"):
        main(["run", job(tmp_path, "name: t\ncorpora: [{kind: demo}]\n"), "--debug"])


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m multistill models --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_error_of_until_name_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from multistill.cli.run import STAGES
    from multistill.config import JobConfig
    from multistill.pipeline.recipes import RECIPES, get_recipe
    from multistill.workspace import Workspace

    settings = {"name": "t", "corpora": [{"kind": "demo"}], "search": True}
    config = JobConfig.model_validate(settings)
    recipes = [get_recipe(name) for name in RECIPES]
    made = {step.name for recipe in recipes for step in recipe.steps(config, Workspace("."))}
    optional = {name for recipe in recipes for name in recipe.left_out(config)}
    assert made | optional == set(STAGES)
    monkeypatch.setenv("COLUMNS", "300")
    assert code_of(["run", "--help"]) == 0
    assert ", ".join(STAGES) in " ".join(capsys.readouterr().out.split())
    path = job(
        tmp_path, f"name: t\nworkspace: {tmp_path / 'w'}\ncorpora: [{{kind: demo}}]\nsearch: true\n"
    )
    assert code_of(["run", path, "--until", "featurs"]) == 2
    printed = capsys.readouterr().err
    assert "did you mean `features`?" in printed
    assert ", ".join(step.name for step in recipes[0].steps(config, Workspace("."))) in printed
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("va", ["validate"]),
        ("s", ["schema", "submit", "status", "stop", "stream", "serve", "search"]),
        ("search ", ["resume", "extend", "join"]),
        ("run --unt", ["--until"]),
        ("run --until f", ["features", "forgetting", "functionals"]),
    ],
)
def test_a_shell_completes_commands_options_and_stages(typed: str, offered: list[str]) -> None:
    words = ["multistill", *typed.split(" ")]
    done = subprocess.run(
        [sys.executable, "-m", "multistill"],
        env={
            **os.environ,
            "_MULTISTILL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == set(offered)


def test_version_and_schema_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from multistill import __version__
    from multistill.config.schema import job_schema

    assert code_of(["--version"]) == 0
    assert capsys.readouterr().out == f"multistill {__version__}\n"
    assert code_of(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == job_schema()


def test_copied_jobs_bring_the_schema_that_they_name(tmp_path: Path) -> None:
    assert code_of(["jobs", "emodb", "--copy", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"emodb.yaml", "job.schema.json"}
