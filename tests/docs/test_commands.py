"""What the documentation shows works: commands parse, job files validate, Python names exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from helpers.paths import ROOT

from multistill.cli.app import app
from multistill.config import JobConfig
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import RECIPES, get_recipe
from multistill.workspace import Workspace

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
JOBS = sorted((ROOT / "multistill" / "jobs").glob("*.yaml"))
NOT_A_JOB = "<!-- not a job file -->"
"""Stands on the line before a YAML block that belongs to another tool."""

SECTIONS = "|".join(JobConfig.model_fields)
INDENTED = re.compile(rf"(?<=\n\n)((?:    (?:{SECTIONS}):.*\n)(?: {{4}}.*\n|\n(?= {{4}}))*)")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
BASE: dict[str, Any] = {
    "name": "docs",
    "corpora": [{"kind": "demo"}, {"kind": "demo", "name": "second"}],
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    page: str
    text: str
    complete: bool
    """False for a mention inside a sentence, which may leave out arguments."""

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks(path: Path) -> Iterator[Block]:
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        language = "other" if before == NOT_A_JOB else match[2]
        line = text.count("\n", 0, match.start()) + 1
        indent = len(match[1])
        body = "".join(part[indent:] for part in match[3].splitlines(keepends=True))
        yield Block(name, line, language, body)
    for match in INDENTED.finditer(FENCE.sub("", text)):
        yield Block(name, 0, "yaml", textwrap.dedent(match[1]))


def commands(path: Path) -> Iterator[Command]:
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":  # the comment at the head of a packaged job
        text = "\n".join(re.findall(r"^#(.*)$", text, re.MULTILINE))
    text = text.replace("\\\n", " ")
    for line in re.findall(r"^(?:   +|\$ )(multistill .*)$", text, re.MULTILINE):
        yield Command(name, line, True)
    for span in re.findall(r"`(multistill [^`]+)`", FENCE.sub("", text)):
        yield Command(name, " ".join(span.split()), False)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
YAML_BLOCKS = [block for block in ALL_BLOCKS if block.language == "yaml"]
PYTHON_BLOCKS = [
    block
    for block in ALL_BLOCKS
    if block.language == "python" and block.page != "docs/extending.md"  # run by test_extending
]
COMMANDS = [command for page in [*PAGES, *JOBS] for command in commands(page)]


def words(text: str) -> list[str]:
    """Arguments of a command, with the placeholders of a synopsis replaced by values."""
    found = []
    for word in shlex.split(text, comments=True)[1:]:
        if word == ">":
            break
        word = word.strip("[]") if word.startswith("[") or word.endswith("]") else word
        word = {"N": "1", "...": "seed=1", "KEY=VALUE": "seed=1"}.get(word, word)
        found.append(word)
    return found


def parse(arguments: list[str], complete: bool) -> dict[str, Any]:
    """Values of a command's parameters; nothing is run."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"there is no command `{arguments[0]}`"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if hasattr(command, "commands") and not complete:
        return {}
    try:
        with command.make_context("multistill", arguments, resilient_parsing=not complete) as made:
            values: dict[str, Any] = made.params
    except typer.Exit:  # --help
        return {}
    if not complete:
        known = {name for option in command.params for name in option.opts}
        given = {word.split("=")[0] for word in arguments if word.startswith("-")}
        assert given <= known, f"unknown options {sorted(given - known)}"
    return values


def validate(data: dict[str, Any], overrides: list[str]) -> JobConfig:
    return jobfile.parse(yaml.safe_dump(data, allow_unicode=True), "docs", overrides)


def is_whole(data: Any) -> bool:
    return isinstance(data, dict) and {"name", "corpora"} <= data.keys()


def job_named(page: str, job: str) -> dict[str, Any]:
    """The job that a command names: a file of this repository, a block of the page, or any job."""
    if (ROOT / job).is_file():
        data: dict[str, Any] = yaml.safe_load((ROOT / job).read_text(encoding="utf-8"))
        return data
    for block in YAML_BLOCKS:
        data = yaml.safe_load(block.text)
        if block.page == page and is_whole(data) and data["name"] == Path(job).stem:
            return data
    return BASE


def stages() -> set[str]:
    """Names of the stages of all recipes."""
    job, workspace = JobConfig.model_validate(BASE), Workspace(".")
    return {step.name for name in RECIPES for step in get_recipe(name).steps(job, workspace)}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_exist_with_their_options_and_keys(command: Command) -> None:
    arguments = words(command.text)
    values = parse(arguments, command.complete)
    overrides = list(values.get("overrides") or [])
    if overrides:
        data = job_named(command.page, str(values.get("job") or ""))
        validate(data, overrides)
    if values.get("until"):
        assert values["until"] in {*stages(), "STAGE"}


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_job_files_and_their_parts_are_valid(block: Block) -> None:
    data = yaml.safe_load(block.text)
    assert isinstance(data, dict), f"mark a block that is no job file with {NOT_A_JOB}"
    if is_whole(data):
        jobfile.parse(block.text, str(block))
        return
    if all("." in key for key in data):
        conditions = [entry["when"] for entry in data.values() if "when" in entry]
        parents = {key: {"choices": value} for when in conditions for key, value in when.items()}
        data = {"search": {"space": {**parents, **data}}}
    unknown = data.keys() - JobConfig.model_fields.keys()
    assert not unknown, f"no sections of a job file: {sorted(unknown)}; or mark it {NOT_A_JOB}"
    validate({**BASE, **data}, [])


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_packaged_jobs_are_valid_and_say_how_they_are_run(job: Path) -> None:
    jobfile.load(job)
    assert [command for command in COMMANDS if command.page.endswith(job.name)]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    source = block.text
    if ">>> " in source:
        lines = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", source, re.MULTILINE)
        source = "\n".join(lines)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_make_targets_and_linked_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`|^\$ )make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named <= targets
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link and not link.startswith("mailto:"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
