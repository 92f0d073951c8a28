"""Sentences that tell the user to do something: found in the source, and looked for in messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from helpers.paths import ROOT
from multistill.errors import MultistillError

VERBS = (
    "add|allow|ask|assign|change|check|choose|close|compare|copy|correct|create|delete|end|fill|"
    "fix|free|give|grant|indent|install|keep|leave|look|lower|map|mount|move|name|open|pass|press|"
    "put|raise|read|reinstall|remove|rename|restart|restore|run|save|see|set|start|submit|train|unpack|unset|"
    "use|wait|write"
)
IMPERATIVE = re.compile(
    rf"(?:^|[;:,.] |\b(?:and|or|then|first) )(?:{VERBS})\b(?! (?:of|as|from|up)\b)"
    r"|did you mean|; split by|\bmust (?:be|start)\b|`multistill "
    r"|\bneeds (?:an?|one|plain|trials|`|\{)|\bneed (?:a|`)",
    re.IGNORECASE,
)


def _text(node: ast.AST) -> str | None:
    """The text of a string in the source, with {} for what is inserted."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\d\}", "{}", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "{}" for part in node.values)
    return None


@cache
def strings() -> dict[str, str]:
    """Each string of the package that has a space, and the first module that has it.

    Documentation, descriptions of keys and options, and parts of f-strings are left out.
    """
    found: dict[str, str] = {}
    package = ROOT / "multistill"
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        apart: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                apart.add(node.value)
            elif isinstance(node, ast.keyword) and node.arg in ("description", "help"):
                apart.update(ast.walk(node.value))
            elif isinstance(node, ast.JoinedStr):
                apart.update(part for part in node.values if isinstance(part, ast.Constant))
        for node in ast.walk(tree):
            text = None if node in apart else _text(node)
            if text and " " in text:
                found.setdefault(text, file.relative_to(package).as_posix())
    return found


@cache
def imperatives() -> dict[str, str]:
    """The strings that tell the user to do something, and others with such a verb."""
    return {text: module for text, module in strings().items() if IMPERATIVE.search(text)}


def says(advice: str, message: object) -> None:
    """Assert that a message has this piece of a sentence of the source; {} stands for any text."""
    pattern = ".*".join(re.escape(part) for part in advice.split("{}"))
    assert re.search(pattern, str(message), re.DOTALL), f"{advice!r} is not in {str(message)!r}"


@contextmanager
def told(
    advice: str, error: type[Exception] = MultistillError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error with this advice, see `says`."""
    with pytest.raises(error) as raised:
        yield raised
    says(advice, raised.value)
