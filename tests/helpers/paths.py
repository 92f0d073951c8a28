"""Where the repository and the tests are."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
EMODB = ROOT.parent / "shared" / "data" / "emodb"
"""Real recordings beside the checkout, where there are any."""
