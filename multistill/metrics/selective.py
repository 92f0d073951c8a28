"""Selective classification: what is right among the predictions that a model is surest of.

Predictions are sorted by confidence. Coverage is the share that is kept, risk the share of wrong
ones among the kept (El-Yaniv and Wiener, "On the foundations of noise-free selective
classification", JMLR 2010). The area under risk over coverage is AURC (Geifman and El-Yaniv,
"Selective classification for deep neural networks", NIPS 2017); what it has above that of an oracle
which puts every wrong prediction last is the excess AURC, which no change of the accuracy alone
moves (Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation", ICLR 2019).

Predictions of equal confidence are kept or left out together, and inside the area they count with
their mean: the order of the clips changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import digamma

from multistill.typing import DoubleArray, IntArray


@dataclass(frozen=True)
class Ranked:
    """Predictions in blocks of equal confidence, the surest first.

    Attributes:
        confidence: of each block [B].
        block: number of the block of each prediction [N].
        clips, errors: predictions of each block, and wrong ones among them [B].
    """

    confidence: DoubleArray
    block: IntArray
    clips: DoubleArray
    errors: DoubleArray


def rank(confidence: DoubleArray, correct: npt.NDArray[np.bool_]) -> Ranked:
    """Blocks of equal confidence of predictions [N]."""
    negative, block = np.unique(-confidence, return_inverse=True)
    clips = np.bincount(block, minlength=len(negative)).astype(float)
    errors = np.bincount(block[~correct], minlength=len(negative)).astype(float)
    return Ranked(-negative, block, clips, errors)


def aurc(clips: DoubleArray, errors: DoubleArray) -> DoubleArray:
    """Mean risk [...] over the numbers of kept predictions, from blocks [..., B].

    Inside a block of equal confidence a prediction counts with the block's mean error, the
    expectation over all orders of the block. NaN without predictions.

    Args:
        clips, errors: predictions and wrong ones of each block, the surest first.

    Examples:
        >>> one_of_four_wrong_and_least_sure = aurc(np.ones(4), np.array([0.0, 0, 0, 1]))
        >>> float(one_of_four_wrong_and_least_sure)  # (0 + 0 + 0 + 1/4) / 4
        0.0625
    """
    last = np.cumsum(clips, axis=-1)
    first = last - clips
    wrong = np.cumsum(errors, axis=-1) - errors
    # Of n predictions and E errors before a block of m with e, the j-th of the block has the risk
    # (E + e j / m) / (n + j). With H = sum of 1 / (n + j): E H + (e / m) (m - n H).
    harmonic = digamma(last + 1) - digamma(first + 1)
    share = errors / np.maximum(clips, 1)
    area = np.sum(wrong * harmonic + share * (clips - first * harmonic), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(area / clips.sum(axis=-1))


def oracle_aurc(clips: DoubleArray, errors: DoubleArray) -> DoubleArray:
    """AURC [...] of the same predictions, with every wrong one ranked last."""
    total, wrong = clips.sum(axis=-1), errors.sum(axis=-1)
    zero = np.zeros_like(wrong)
    return aurc(np.stack([total - wrong, wrong], axis=-1), np.stack([zero, wrong], axis=-1))


def threshold_for(confidence: DoubleArray, coverage: float) -> float:
    """The highest confidence at or above which at least this share of predictions [N] lies.

    Examples:
        >>> threshold_for(np.array([0.9, 0.5, 0.7, 0.5]), 0.5)
        0.7
        >>> threshold_for(np.array([0.9, 0.5, 0.7, 0.5]), 0.6)  # equal ones are kept together
        0.5
    """
    needed = int(np.ceil(coverage * len(confidence) - 1e-9))
    return float(np.sort(confidence)[::-1][max(needed, 1) - 1])


def threshold_for_risk(
    confidence: DoubleArray, correct: npt.NDArray[np.bool_], risk: float
) -> float:
    """The lowest confidence at or above which at most this share of predictions [N] is wrong.

    Infinite where even the surest ones are wrong more often. The share is that of these clips:
    others can have more errors, the more so the fewer clips there are.

    Examples:
        >>> ranked = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
        >>> threshold_for_risk(*ranked, 0.25), threshold_for_risk(*ranked, 0.2)
        (0.6, 0.8)
    """
    ranked = rank(confidence, correct)
    allowed = np.flatnonzero(np.cumsum(ranked.errors) <= risk * np.cumsum(ranked.clips) + 1e-9)
    return float(ranked.confidence[allowed[-1]]) if len(allowed) else float("inf")


def curve(ranked: Ranked, points: int = 100) -> tuple[list[float], list[float]]:
    """Coverage and risk after a block each, at most about so many, evenly over the coverage."""
    kept = np.cumsum(ranked.clips)
    if not len(kept):
        return [], []
    coverage, risk = kept / kept[-1], np.cumsum(ranked.errors) / kept
    chosen = np.unique(np.searchsorted(coverage, np.linspace(0, 1, points)).clip(0, len(kept) - 1))
    return coverage[chosen].tolist(), risk[chosen].tolist()
