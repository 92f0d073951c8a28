"""Each class against the rest: thresholds chosen on validation, and what they detect.

As Dai et al. 2021 score emotions that exclude each other no more than labels of several raters
do: each class is a decision of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from multistill.typing import DoubleArray, IntArray

Detected = npt.NDArray[np.bool_]

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds that are tried: 0.05 to 0.95, as published."""
UNDECIDED = 0.5
"""Of a class that validation does not have."""


def fit_thresholds(probabilities: DoubleArray, truth: IntArray) -> list[float] | None:
    """Of each class, the threshold of `GRID` with the highest F1; None without labelled rows.

    Of several, the one nearest to one half, then the lower one.

    Args:
        probabilities: of each class against the rest [N, C].
        truth: class indices [N]; ties (-1) are excluded.

    Examples:
        >>> probabilities = np.array([[0.9, 0.3], [0.6, 0.35], [0.4, 0.3], [0.2, 0.45]])
        >>> fit_thresholds(probabilities, truth=np.array([0, 0, 1, 1]))
        [0.5, 0.45]
    """
    labelled = truth >= 0
    if not labelled.any():
        return None
    nearest = sorted(GRID, key=lambda value: (abs(value - UNDECIDED), value))
    thresholds = []
    for label, column in enumerate(probabilities[labelled].T):
        own = truth[labelled] == label
        if not own.any():
            thresholds.append(UNDECIDED)
            continue
        thresholds.append(max(nearest, key=lambda value: _f1(column >= value, own)))
    return thresholds


def _f1(detected: Detected, own: Detected) -> float:
    return float(2 * (detected & own).sum() / (detected.sum() + own.sum()))


def detection(detected: Detected, truth: IntArray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and balanced accuracy of each class; None where not defined.

    Balanced accuracy is the mean of the shares that are right among the clips of the class and
    among the others, (TP * N / P + TN) / (2 N) with P of the class and N others.

    Args:
        detected: [N, C]. truth: class indices [N]; ties (-1) are excluded.
    """
    labelled = truth >= 0
    found = []
    for label, name in enumerate(classes):
        own, answer = truth[labelled] == label, detected[labelled, label]
        positives, answered, right = own.sum(), answer.sum(), (own & answer).sum()
        others = (~own).sum()
        recall = float(right / positives) if positives else None
        found.append(
            {
                "class": name,
                "precision": float(right / answered) if answered else None,
                "recall": recall,
                "f1": float(2 * right / (positives + answered)) if positives else None,
                "balanced_accuracy": None
                if recall is None or not others
                else (recall + float((~own & ~answer).sum() / others)) / 2,
            }
        )
    return found
