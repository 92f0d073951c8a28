"""Risk against coverage of a model, and what its threshold of validation does on test.

Confidence is the highest share of the distribution after temperature scaling. The threshold is
chosen on validation for a wanted coverage (`evaluation.coverage`), a second one for a wanted risk
(`evaluation.risk`); on test, coverage and scores of what they keep are measured, with intervals
over resampled groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from multistill.metrics.intervals import Resampling, intervals
from multistill.metrics.selective import Ranked, aurc, curve, oracle_aurc, rank
from multistill.typing import DoubleArray, IntArray

BLOCKS = 200
"""Blocks of confidence that the area is resampled over; its value has one per confidence."""


def score_selective(
    truth: IntArray,
    predicted: IntArray,
    confidence: DoubleArray,
    resampling: Resampling,
    level: float,
) -> dict[str, Any] | None:
    """The curve and its area, over the labelled clips; None without any.

    Args:
        truth, predicted: class indices [N], -1 of `truth` where the votes tie.
        confidence: of the prediction [N].
        level: of the intervals.

    Returns:
        `aurc` and `excess_aurc` with intervals, `random` (the area of a random order, which is the
        share of errors), the `curve` of `coverage` and `risk`, and `threshold` and
        `risk_threshold`, None so far.
    """
    labelled = np.flatnonzero(truth >= 0)
    if not len(labelled):
        return None
    correct = predicted[labelled] == truth[labelled]
    ranked = rank(confidence[labelled], correct)
    clusters = resampling.clusters
    draws = _resampled(ranked, correct, clusters.index[labelled], resampling)
    values = _areas(ranked.clips, ranked.errors)
    groups = len(np.unique(clusters.index[labelled]))
    coverage, risk = curve(ranked)
    return {
        **intervals(values, draws, level, groups),
        "random": float(1 - correct.mean()),
        "curve": {"coverage": coverage, "risk": risk},
        "threshold": None,
        "risk_threshold": None,
    }


def describe_threshold(
    thresholds: DoubleArray,
    wanted: float,
    kept: np.ndarray,
    truth: IntArray,
    resampling: Resampling,
    level: float,
) -> dict[str, Any]:
    """What thresholds that were chosen on validation keep of the test clips.

    Args:
        thresholds: of each clip [N], that of its fold.
        wanted: coverage or risk on validation.
        kept: labelled clips at or above their threshold, a mask [N].

    Returns:
        `threshold` (mean over the folds that keep anything; None if none does), `wanted`,
        `coverage` among the labelled clips with its interval, `clips` that are kept and `classes`
        that these have.
    """
    labelled, finite = truth >= 0, np.unique(thresholds[np.isfinite(thresholds)])
    rows = np.stack([labelled, kept], axis=1).astype(float)
    sums = resampling.sums(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {"coverage": np.asarray(kept.sum() / labelled.sum())}
        draws = {"coverage": sums[:, 1] / sums[:, 0]}
    groups = len(np.unique(resampling.clusters.index[labelled]))
    return {
        "threshold": float(np.mean(finite)) if len(finite) else None,
        "wanted": wanted,
        **intervals(values, draws, level, groups),
        "clips": int(kept.sum()),
        "classes": len(np.unique(truth[kept])),
    }


def _areas(clips: DoubleArray, errors: DoubleArray) -> dict[str, DoubleArray]:
    area = aurc(clips, errors)
    return {"aurc": area, "excess_aurc": np.maximum(area - oracle_aurc(clips, errors), 0.0)}


def _resampled(
    ranked: Ranked, correct: np.ndarray, cluster: IntArray, resampling: Resampling
) -> dict[str, DoubleArray]:
    """The areas on every resample [resamples], over at most `BLOCKS` blocks of confidence."""
    kept = np.cumsum(ranked.clips)
    coarse = np.minimum((kept - ranked.clips) * BLOCKS // kept[-1], BLOCKS - 1).astype(np.int64)
    column = coarse[ranked.block]
    shape = (resampling.clusters.count, BLOCKS)
    cell = cluster * BLOCKS + column
    clips = np.bincount(cell, minlength=shape[0] * BLOCKS).reshape(shape)
    errors = np.bincount(cell, weights=~correct, minlength=shape[0] * BLOCKS).reshape(shape)
    counts = resampling.counts()
    return _areas(counts @ clips.astype(float), counts @ errors)
