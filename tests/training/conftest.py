"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training_corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifest and feature store; tests only read them."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
