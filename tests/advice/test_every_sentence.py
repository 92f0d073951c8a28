"""Every sentence of the package that tells the user to do something stands in a test.

The tests of this folder name a piece of the sentence, provoke it, and do what it says. A piece
is taken as it stands in the source, with {} for what is inserted, and fits one sentence only.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.advice import imperatives, strings

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
