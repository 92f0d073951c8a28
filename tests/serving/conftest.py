"""One predictor for the tests of the HTTP interface."""

from __future__ import annotations

import pytest
from helpers.predictor_case import save_predictor

from multistill import Predictor


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(save_predictor(tmp_path_factory.mktemp("m") / "model"), "cpu")
