"""Temperature scaling on logits with a known temperature."""

from __future__ import annotations

import numpy as np
import pytest

from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import softmax


@pytest.mark.parametrize("true_temperature", [0.5, 3.0])
def test_fitted_temperature_recovers_a_known_one(true_temperature: float) -> None:
    rng = np.random.default_rng(11)
    logits = rng.normal(size=(4000, 7)) * 2
    truth = np.array([rng.choice(7, p=p) for p in softmax(logits)])
    fitted = fit_temperature(logits * true_temperature, truth)
    assert fitted == pytest.approx(true_temperature, rel=0.15)


def test_no_labelled_validation_clip_gives_no_temperature() -> None:
    assert fit_temperature(np.zeros((3, 7)), np.full(3, -1)) is None
