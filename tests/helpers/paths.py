"""Paths of the repository and of the tests."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PYTHONPATH = f"{ROOT}{os.pathsep}{TESTS}"
"""For subprocesses that import `multistill` and `helpers`."""
EMODB = ROOT.parent / "shared" / "data" / "emodb"
"""Real recordings; the folder need not exist."""
