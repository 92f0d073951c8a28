"""Temperature scaling: one number, fitted on validation, that leaves every answer as it is.

Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from multistill.metrics.classification import SMALLEST, softmax
from multistill.typing import DoubleArray, IntArray

BOUNDS = (0.05, 20.0)


def fit_temperature(logits: DoubleArray, truth: IntArray) -> float | None:
    """The temperature that minimises the winner's NLL, or None with nothing to fit on.

    Args:
        logits: of validation clips [N, 7].
        truth: winners [N]; ties (-1) are left out.

    Examples:
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> temperature = fit_temperature(logits, truth=np.array([0, 0, 1, 1]))
        >>> round(temperature, 2)  # 98 % confident, 75 % right
        3.64
    """
    known = np.flatnonzero(truth >= 0)
    if not len(known):
        return None
    values, winner = logits[known], truth[known]

    def loss(log_temperature: float) -> float:
        scaled = softmax(values / np.exp(log_temperature))
        picked = scaled[np.arange(len(winner)), winner]
        return float(-np.log(np.maximum(picked, SMALLEST)).mean())

    low, high = np.log(BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))
