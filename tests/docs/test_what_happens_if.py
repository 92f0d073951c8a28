"""Each question of docs/what-happens-if.md stands there once."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import combinations

import pytest
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "what-happens-if.md"
COMMON = {
    "a",
    "an",
    "and",
    "another",
    "are",
    "at",
    "be",
    "but",
    "by",
    "i",
    "in",
    "is",
    "it",
    "its",
    "my",
    "no",
    "not",
    "of",
    "on",
    "or",
    "the",
    "to",
}
ALIKE = 0.62
"""Share of the words of two questions that both have (Dice's coefficient)."""


def questions(page: str) -> list[str]:
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    found = [re.split(r"(?<!\\) \| ", line[2:])[0] for line in rows]
    return [question for question in found if question not in ("…", "---")]


def words(question: str) -> set[str]:
    """What the question is about: without remarks in brackets and small words."""
    plain = re.sub(r"\([^)]*\)", " ", question).lower()
    return set(re.findall(r"[\w.]+", plain)) - COMMON


def nearly_equal(first: str, second: str) -> bool:
    one, other = words(first), words(second)
    if 2 * len(one & other) > ALIKE * (len(one) + len(other)):
        return True
    return SequenceMatcher(None, first.lower(), second.lower()).ratio() > 0.8


def test_no_question_stands_there_twice() -> None:
    asked = questions(PAGE.read_text(encoding="utf-8"))
    assert len(asked) > 50
    assert [pair for pair in combinations(asked, 2) if nearly_equal(*pair)] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [  # as they stood there
        ("a recording is broken", "a recording is broken"),
        ("a corpus file changes", "a corpus file changes"),
        (
            "two people run the same job in one workspace",
            "two people, or two drivers, run the very same job at the same time",
        ),
    ],
)
def test_the_comparison_finds_what_is_asked_twice(first: str, second: str) -> None:
    assert nearly_equal(first, second)


def test_every_row_is_in_a_section_and_has_an_answer() -> None:
    section, rows = "", 0
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        section = line if line.startswith("## ") else section
        if line.startswith("| ") and not line.startswith(("| …", "| ---")):
            assert section, line
            assert len(line) > 60 and line.rstrip().endswith((". |", ".) |")), line
            rows += 1
    assert rows == len(questions(PAGE.read_text(encoding="utf-8")))


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
    ]
    assert missing == []
