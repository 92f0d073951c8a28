"""Temperature scaling: one scalar, fitted on validation, that changes no predicted class.

Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from multistill.metrics.classification import EPS, softmax
from multistill.typing import DoubleArray, IntArray

BOUNDS = (0.05, 20.0)


def fit_temperature(logits: DoubleArray, truth: IntArray) -> float | None:
    """The temperature that minimises the NLL of the true class, or None without labelled rows.

    Args:
        logits: of validation clips [N, C].
        truth: class indices [N]; ties (-1) are excluded.

    Examples:
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> temperature = fit_temperature(logits, truth=np.array([0, 0, 1, 1]))
        >>> round(temperature, 2)  # 98 % confident, 75 % right
        3.64
    """
    labelled = np.flatnonzero(truth >= 0)
    if not len(labelled):
        return None
    logits, truth = logits[labelled], truth[labelled]

    def nll(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        of_truth = probabilities[np.arange(len(truth)), truth]
        return float(-np.log(np.maximum(of_truth, EPS)).mean())

    low, high = np.log(BOUNDS)
    result = minimize_scalar(nll, bounds=(low, high), method="bounded")
    return float(np.exp(result.x))
