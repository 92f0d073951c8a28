"""Random predictions and clusters for the tests of metrics and comparisons."""

from __future__ import annotations

import numpy as np

from multistill.metrics.classification import softmax
from multistill.metrics.intervals import Clusters


def random_predictions(size: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class indices [N], predicted probabilities [N, 7] that favour them, vote shares [N, 7]."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 7, size)
    probabilities = softmax(rng.normal(size=(size, 7)) + 1.5 * np.eye(7)[truth])
    shares = rng.dirichlet(np.full(7, 0.4), size)
    return truth, probabilities, shares


def sessions_of(sizes: list[int]) -> Clusters:
    """Clusters by session, with as many rows per session as `sizes` says."""
    return Clusters("session", np.repeat(np.arange(len(sizes)), sizes), len(sizes))
