"""How a model's scores spread over speakers: a mean may hide people it does not work for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multistill.metrics.classification import from_confusion
from multistill.typing import DoubleArray, IntArray

MIN_CLIPS = 10
"""A speaker of fewer labelled clips has no score: one clip would move it by a tenth or more."""
LOWEST = 5
"""Speakers that are named."""
MAX_VALUES = 200
"""Scores that are kept for the figure; of more speakers, evenly spaced quantiles."""
QUANTILES = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}


def score_speakers(
    speakers: Sequence[str], truth: IntArray, predicted: IntArray, classes: int
) -> dict[str, Any] | None:
    """Accuracy and UAR of every speaker; None if fewer than two have enough clips.

    A speaker's UAR is over the classes that the speaker has.

    Args:
        speakers: of each clip [N], empty where unknown.
        truth, predicted: class indices [N], -1 of `truth` where the votes tie.

    Returns:
        `count` of speakers, those `left_out`, and `unknown`, the labelled clips without a speaker,
        which are left out too; for `accuracy` and `uar` quartiles, `sd` and the
        sorted `values`; `lowest`, the speakers with the lowest UAR: `speaker`, `clips`, `classes`,
        `accuracy`, `uar`.
    """
    given = np.asarray(speakers, dtype=str)
    known = given != ""
    names, index = np.unique(given[known], return_inverse=True)
    cells = confusions(index, truth[known], predicted[known], len(names), classes)
    clips = cells.sum(axis=(1, 2))
    enough = clips >= MIN_CLIPS
    if enough.sum() < 2:
        return None
    names, cells, clips = names[enough], cells[enough], clips[enough]
    scores = from_confusion(cells)
    order = np.argsort(scores["uar"], kind="stable")[:LOWEST]
    return {
        "count": len(names),
        "left_out": int((~enough).sum()),
        "unknown": int((~known & (truth >= 0)).sum()),
        **{metric: _spread(scores[metric]) for metric in ("accuracy", "uar")},
        "lowest": [
            {
                "speaker": str(names[row]),
                "clips": int(clips[row]),
                "classes": int((cells[row].sum(axis=1) > 0).sum()),
                "accuracy": float(scores["accuracy"][row]),
                "uar": float(scores["uar"][row]),
            }
            for row in order
        ],
    }


def confusions(
    group: IntArray, truth: IntArray, predicted: IntArray, groups: int, classes: int
) -> DoubleArray:
    """Counts [groups, truth, prediction] of the labelled clips of each group.

    Args:
        group: number of each clip's group [N].
    """
    labelled = truth >= 0
    cell = (group[labelled] * classes + truth[labelled]) * classes + predicted[labelled]
    counts = np.bincount(cell, minlength=groups * classes * classes)
    return counts.reshape(groups, classes, classes).astype(float)


def _spread(scores: DoubleArray) -> dict[str, Any]:
    shown = np.sort(scores)
    if len(shown) > MAX_VALUES:
        shown = np.quantile(shown, np.linspace(0, 1, MAX_VALUES))
    return {
        **{name: float(np.quantile(scores, share)) for name, share in QUANTILES.items()},
        "sd": float(np.std(scores, ddof=1)),
        "values": shown.tolist(),
    }
