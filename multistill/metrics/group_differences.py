"""Differences between groups that chance alone makes.

Groups differ in their scores even for a model that treats all clips alike: they are finite. The
reference is a model of equal recalls whose correct predictions are assigned at random to the clips
of their class. The correct predictions of a class in each group then follow the multivariate
hypergeometric distribution, so simulating needs no permutation of the clips (for the comparison
with a simulated random model: audEERING's ser-tests; for the permutation test: Good, "Permutation,
parametric and bootstrap tests of hypotheses", 2005, chapter 3).
"""

from __future__ import annotations

import numpy as np

from multistill.typing import DoubleArray, IntArray


def group_scores(clips: IntArray, correct: IntArray) -> dict[str, DoubleArray]:
    """Accuracy and UAR [..., groups] of counts [..., groups, classes].

    UAR is over the classes that all groups have, so that it is one metric; NaN if there are fewer
    than two.
    """
    shared = (clips > 0).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = correct.sum(axis=-1) / clips.sum(axis=-1)
        recall = correct[..., shared] / clips[..., shared]
    uar = recall.mean(axis=-1) if shared.sum() > 1 else np.full(accuracy.shape, np.nan)
    return {"accuracy": np.asarray(accuracy), "uar": np.asarray(uar)}


def simulate(clips: IntArray, correct: IntArray, simulations: int, seed: int) -> IntArray:
    """Correct predictions [simulations, groups, classes] that are assigned at random.

    Args:
        clips, correct: counts [groups, classes]; each class keeps its number of correct ones.
    """
    random = np.random.default_rng(seed)
    drawn = [
        random.multivariate_hypergeometric(of_class, right, size=simulations, method="marginals")
        for of_class, right in zip(clips.T, correct.sum(axis=0).tolist(), strict=True)
    ]
    return np.stack(drawn, axis=-1)


def p_of_largest(value: float, simulated: DoubleArray) -> float:
    """Share of the simulated values that are as large, the measured one counted among them.

    Examples:
        >>> p_of_largest(0.3, np.array([0.1, 0.2, 0.4]))
        0.5
    """
    as_large = int((simulated >= value - 1e-12).sum())
    return (1 + as_large) / (1 + len(simulated))
