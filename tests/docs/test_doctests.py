"""The examples in docstrings run, and the API page names things that exist."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re

import pytest
from helpers.paths import ROOT

API = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "multistill").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0, "see the output above"


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_api_page_exists_and_has_a_docstring(name: str) -> None:
    assert pkgutil.resolve_name(name).__doc__


def test_the_api_page_has_runnable_examples() -> None:
    """At least ten of the documented functions show a call and its result."""
    assert sum(">>> " in (pkgutil.resolve_name(name).__doc__ or "") for name in NAMES) >= 10
