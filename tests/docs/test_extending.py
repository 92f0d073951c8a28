"""The examples of docs/extending.md, applied to a copy of the package and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    title: str
    blocks: list[tuple[str, str, str]]
    """Language, title and text of each block."""


def examples() -> list[Example]:
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return [Example(text.partition("\n")[0], BLOCK.findall(text)) for text in sections]


def apply(package: Path, language: str, title: str, text: str) -> None:
    """Write a file, or change one as a diff without line numbers says."""
    path = package / title
    if language == "python":
        assert not path.exists(), f"{title} exists"
        path.write_text(text, encoding="utf-8")
        return
    lines = [line or " " for line in text.splitlines()]
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"the lines to change are not in {title}:\n{before}"
    path.write_text(content.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with all examples in it."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__", "*.ogg")
    shutil.copytree(ROOT / "multistill", folder / "multistill", ignore=ignored)
    for example in examples():
        for language, title, text in example.blocks:
            if title != "try it":
                apply(folder, language, title, text)
    return folder


def test_every_section_has_an_example() -> None:
    titles = [example.title for example in examples()]
    assert titles == [
        "A corpus",
        "An encoder",
        "A fusion module",
        "A loss",
        "A stage",
        "A recipe",
    ]
    for example in examples():
        assert [title for _, title, _ in example.blocks].count("try it") == 1, example.title


def test_the_examples_work_once_their_lines_are_added(extended: Path) -> None:
    """Each in a module of its own, but all in one process, whose imports take longest."""
    tried = {example.title: script(example) for example in examples()}
    code = (
        "import json, sys\n"
        "for title, text in json.load(sys.stdin).items():\n"
        "    exec(compile(text, title, 'exec'), {'__name__': title})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(tried),
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def script(example: Example) -> str:
    [text] = [text for _, title, text in example.blocks if title == "try it"]
    return text


def test_the_examples_follow_the_style_and_the_types_of_the_package(extended: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", extended)
    changed = {title for example in examples() for _, title, _ in example.blocks} - {"try it"}
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        tool = [sys.executable, "-m", *command, *sorted(changed)]
        done = subprocess.run(tool, cwd=extended, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
