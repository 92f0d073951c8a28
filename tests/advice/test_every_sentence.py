"""Every sentence of the package that tells the user to do something stands in a test.

The tests of this folder name a piece of the sentence, provoke it, and do what it says. A piece
is taken as it stands in the source, with {} for what is inserted, and fits one sentence only.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.advice import IMPERATIVE, imperatives, strings

HERE = Path(__file__).parent


def modules() -> list[ModuleType]:
    files = sorted(HERE.glob("test_*.py"))
    names = [f"advice.{file.stem}" for file in files if file != Path(__file__)]
    return [importlib.import_module(name) for name in names]


def column(function: Any) -> list[str]:
    """What the tables of a parametrized test have in the column `advice`."""
    found: list[str] = []
    for mark in getattr(function, "pytestmark", ()):
        if mark.name != "parametrize":
            continue
        names, rows = mark.args[:2]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        if "advice" in names:
            found += [row if len(names) == 1 else row[names.index("advice")] for row in rows]
    return found


@cache
def pieces() -> set[str]:
    """What the tests look for in messages: the tables' column, and arguments of told and says."""
    found: set[str] = set()
    for module in modules():
        assert module.__file__ is not None
        for name, function in vars(module).items():
            if name.startswith("test_"):
                found.update(column(function))
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("told", "says")
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(node.args[0].value)
    return found


def fitting(piece: str) -> list[str]:
    """The sentences that this piece is a part of, or the one that it is."""
    if piece in strings():
        return [piece]
    return [text for text in imperatives() if piece in text] or [
        text for text in strings() if piece in text
    ]


NOT_ADVICE = {
    # A string of the package with a verb in it that tells nobody to do something.
    "set in the job file": "where an encoding comes from",
    "{}: {} will be downloaded on the first run": "what a run does",
    "{} will be created on the first run": "what a run does",
    "Ray does not separate the users of a cluster: everybody who holds its token can read what "
    "this job reads, and run code as it does": "what a cluster is",
    "train.learning_rate {}, train.batch_size {}, train.epochs {}: {} steps": "names of keys",
    "# {}: written by `multistill init`. Every key but `name` and `corpora` may go.": "a comment",
    "teacher: {}# `multistill models` lists the presets": "a comment",
    "labels:                       # `multistill labels` prints the spellings it recognises": (
        "a comment"
    ),
    "{}# use-multilingual (`multistill weights get` fetches it)": "a comment",
    "  kind: leave-one-out         # by models of the others, trained anew for each of them": (
        "a comment"
    ),
    "train before caps": "a column of a table",
    "lower left": "a corner of a plot",
    "name = '{}'": "a filter of MLflow",
    "to probe: paired difference to the probe of the same run that is best on validation, {}, p by "
    "Holm over the trained models of the run; train s: of one training, without models that it "
    "starts from; ms a clip: median, from the file": "the legend of a table",
}


def test_every_sentence_is_followed_by_a_test() -> None:
    followed = {text for piece in pieces() for text in fitting(piece)}
    left = {text: module for text, module in imperatives().items() if text not in followed}
    assert {text: left[text] for text in left if text not in NOT_ADVICE} == {}, (
        "provoke each of these sentences and do what it says, in a test of this folder"
    )


def test_what_is_not_advice_stands_in_the_source_and_in_no_test() -> None:
    followed = {text for piece in pieces() for text in fitting(piece)}
    assert [text for text in NOT_ADVICE if text not in imperatives()] == []
    assert [text for text in NOT_ADVICE if text in followed] == []


def test_each_piece_names_one_sentence() -> None:
    """Otherwise a piece such as `use` would count for many, and one of no sentence for none."""
    assert {piece: fitting(piece) for piece in pieces() if len(fitting(piece)) != 1} == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "the disk of {} hums; use another",
        "`{}` is taken; choose another name, or remove the folder {}",
        "no such model: run `multistill models`",
        "the key must be a number",
    ],
)
def test_a_new_sentence_is_noticed(sentence: str) -> None:
    assert IMPERATIVE.search(sentence)
    assert [piece for piece in pieces() if piece in sentence] == []
