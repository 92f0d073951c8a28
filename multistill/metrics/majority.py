"""Whether scores beat a model that learnt nothing: the majority class, or guessing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multistill.metrics.classification import from_confusion
from multistill.typing import IntArray

ONE_SIDED_95 = 1.645
"""Standard errors above its mean that guessing exceeds once in twenty times."""


def bars(truth: IntArray, majority: int) -> dict[str, float] | None:
    """What `uar` and `macro_f1` a model has to exceed on these labels.

    Macro F1: that of always predicting the majority class. UAR: one over the number of classes,
    which is the majority's and that of any guessing, plus 1.645 standard errors of guessing. With
    n_c clips of class c, the recall of a uniform guess has variance (1/K)(1 - 1/K) / n_c, and the
    UAR is the mean of K independent recalls.

    Args:
        truth: class index [N], -1 where the votes tie.
        majority: most frequent class of training.

    Returns:
        None where fewer than two classes occur, so that nothing can be told.

    Examples:
        >>> {name: round(bar, 3) for name, bar in bars(np.array([0] * 20 + [1] * 20), 0).items()}
        {'uar': 0.63, 'macro_f1': 0.333}
    """
    counts = np.bincount(truth[truth >= 0], minlength=majority + 1)
    present = counts[counts > 0]
    classes = len(present)
    if classes < 2:
        return None
    confusion = np.zeros((len(counts), len(counts)))
    confusion[:, majority] = counts
    chance = 1 / classes
    error = chance * np.sqrt(chance * (1 - chance) * (1 / present).sum())
    return {
        "uar": float(chance + ONE_SIDED_95 * error),
        "macro_f1": float(from_confusion(confusion)["macro_f1"]),
    }


def beats(scores: Mapping[str, float], bar: Mapping[str, float]) -> bool:
    """Whether every score is above its bar; a NaN is not."""
    return all(scores[name] > value for name, value in bar.items())
