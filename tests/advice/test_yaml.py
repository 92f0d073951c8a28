"""Advice about what YAML makes of a job file: provoked and followed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.advice import told

from multistill.errors import JobFileError, UsageError
from multistill.pipeline import jobfile

BASE = "name: x\ncorpora: [{kind: demo}]\n"

FILES: list[tuple[str, str, list[str]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        "name: x\ncorpora:\n    - {kind: demo}\n  - {kind: demo, name: b}\n",
        "start the keys of one section, and the items of one list, in the same column",
        ["name: x\ncorpora:\n  - {kind: demo}\n  - {kind: demo, name: b}\n"],
    ),
    (
        "  name: x\ncorpora: [{kind: demo}]\n",
        "this line starts further left than the first key; start all sections in the same column",
        [BASE],
    ),
    (
        'name: "x" y\ncorpora: [{kind: demo}]\n',
        "there is text after a closing quote or bracket; put the whole text in quotes",
        ['name: "x y"\ncorpora: [{kind: demo}]\n'],
    ),
    (
        'name: x\ncorpora: [{kind: emodb, path: "D:\\data"}]\n',
        "would be an escape; use single quotes, as for Windows paths",
        ["name: x\ncorpora: [{kind: emodb, path: 'D:\\data'}]\n"],
    ),
    (
        "name: !x y\ncorpora: [{kind: demo}]\n",
        "remove it, or put text that starts with `!` or `=` in quotes",
        ["name: y\ncorpora: [{kind: demo}]\n", "name: '!x y'\ncorpora: [{kind: demo}]\n"],
    ),
    (f"{BASE}---\n{BASE}", "a second document starts here (`---`); keep one job per file", [BASE]),
    (
        "name: x\ncorpora: [{kind: demo}]\nseed\nstudents: []\n",
        "this line has no `: ` after its key; write `key: value`",
        ["name: x\ncorpora: [{kind: demo}]\nseed: 1\n"],
    ),
    (
        "name: x\ncorpora: [{kind: demo}]\nsplit:\n  by:speaker\n  test: 0.2\n",
        "there is no space after the colon; write `key: value`",
        ["name: x\ncorpora: [{kind: demo}]\nsplit:\n  by: speaker\n  test: 0.2\n"],
    ),
    (
        "name: x\ncorpora: [{kind: demo}]\nsplit:\n  by: speaker\n    test: 0.2\n",
        "this line is indented further than the line above, which has a value already; "
        "start both in the same column",
        ["name: x\ncorpora: [{kind: demo}]\nsplit:\n  by: speaker\n  test: 0.2\n"],
    ),
    (
        "name: x\ncorpora: [{kind: demo}]\nsplit:\n\tby: speaker\n",
        "indent with spaces, two per level",
        ["name: x\ncorpora: [{kind: demo}]\nsplit:\n  by: speaker\n"],
    ),
    (
        "name: x\x07\ncorpora: [{kind: demo}]\n",
        "the character {} is not allowed in YAML; delete it",
        [BASE],
    ),
    (
        f"{BASE}split:\n  allow_leak\n  test: 0.2\n",
        "this line has no `: ` after its key; write `key: value`",
        [f"{BASE}split:\n  allow_leak: true\n  test: 0.2\n"],
    ),
    (
        'name: "x\nseed": 3\ncorpora: [{kind: demo}]\n',
        "check the quotes and the indentation of this line and of the line above",
        ['name: "x"\nseed: 3\ncorpora: [{kind: demo}]\n'],
    ),
    (
        "name: @x\ncorpora: [{kind: demo}]\n",
        "text that starts with `{}` must be in quotes",
        ["name: '@x'\ncorpora: [{kind: demo}]\n"],
    ),
    (
        "name: *\ncorpora: [{kind: demo}]\n",
        "text that starts with `*` or `&` must be in quotes",
        ["name: '&x'\ncorpora: [{kind: demo}]\n"],
    ),
    (
        "name: x: y\ncorpora: [{kind: emodb, path: /d}]\n",
        "text that contains `: ` must be in quotes, and a section in one line in braces: "
        "`{key: value}`",
        ["name: x\ncorpora: [{kind: emodb, path: '/d: e'}]\n"],
    ),
    (
        f"{BASE}split: by: speaker\n",
        "text that contains `: ` must be in quotes, and a section in one line in braces: "
        "`{key: value}`",
        [f"{BASE}split: {{by: speaker}}\n"],
    ),
    (
        f"{BASE}split: {{[by]: speaker}}\n",
        "{}a key must be text, not a list or a section",
        [f"{BASE}split: {{by: speaker}}\n"],
    ),
    (
        "name: 2024\ncorpora: [{kind: demo}]\n",
        "as {}; put it in quotes: {}",
        ["name: '2024'\ncorpora: [{kind: demo}]\n"],
    ),
    (
        f"{BASE}seed: 010\n",
        "write the number without leading zeros and colons",
        [f"{BASE}seed: 10\n"],
    ),
    (
        "name: x\ncorpora: [{kind: emodb, path: /d, limit: 1}]\nseed:\n",
        "has no value; write one, or remove the key",
        ["name: x\ncorpora: [{kind: emodb, path: /d}]\nseed: 1\n", BASE],
    ),
    (
        "name: null\ncorpora: [{kind: demo}]\n",
        ", or put it in quotes: '{}'",
        ["name: 'null'\ncorpora: [{kind: demo}]\n", BASE],
    ),
    (
        "name: x\ncorpora: {kind: demo}\n",
        "stands where a list belongs; write [A, B], or one item per line that starts with `- `",
        [BASE, "name: x\ncorpora:\n  - {kind: demo}\n"],
    ),
    (
        f"{BASE}split: {{'': 3}}\n",
        "there is no key before the colon; write `key: value`",
        [f"{BASE}split: {{folds: 3}}\n"],
    ),
    (
        f"{BASE}<<: 3\n",
        "`<<` merges a section, or a list of sections, written as `<<: *name`; put other text in "
        "quotes",
        [
            f"{BASE}teacher: {{train: &t {{epochs: 3}}}}\nstudents:\n"
            "  - {name: b, model: small-student, train: {<<: *t}}\n",
            f"{BASE}workspace: '<<'\n",
        ],
    ),
    (
        f"{BASE}seed: {'9' * 5000}\n",
        "the number in this line is longer than the limit of {} characters; write a shorter one, "
        "or put text in quotes",
        [f"{BASE}seed: 99\n", f"{BASE}workspace: '{'9' * 200}'\n"],
    ),
    (
        "name: 0x_\ncorpora: [{kind: demo}]\n",
        "`{}` is not a number; put it in quotes",
        ["name: '0x_'\ncorpora: [{kind: demo}]\n"],
    ),
    (
        "name:\tx\ncorpora: [{kind: demo}]\n",
        "there is a tab in this line, which YAML does not allow outside quotes; write a space in "
        "its place",
        [BASE],
    ),
    (
        f"{BASE}search:\n",
        "the section is empty; write `{}: true` to have it with all defaults, or remove it",
        [f"{BASE}search: true\n", BASE],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "followed"), FILES)
def test_advice_about_yaml(wrong: str, advice: str, followed: list[str]) -> None:
    with told(advice, JobFileError):
        jobfile.parse(wrong, "x.yaml")
    for text in followed:
        jobfile.parse(text, "x.yaml")


def test_advice_about_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes("name: gefühl\ncorpora: [{kind: demo}]\n".encode("cp1252"))
    with told("not UTF-8 text; save the file as UTF-8", JobFileError):
        jobfile.load(file)
    file.write_text(file.read_text(encoding="cp1252"), encoding="utf-8")
    assert jobfile.load(file).name == "gefühl"


def test_advice_about_set() -> None:
    with told("--set {}: write it as section.key=value", UsageError):
        jobfile.parse(BASE, "x.yaml", ["seed 3"])
    assert jobfile.parse(BASE, "x.yaml", ["split.test=0.3"]).split.test == 0.3
