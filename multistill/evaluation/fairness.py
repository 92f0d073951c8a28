"""The largest difference in score between groups, beside what chance makes of equal groups.

Groups are of gender, age, corpus: what `slices.attributes` knows of the clips. Chance assigns a
model's correct predictions at random to the clips of their class
(`multistill.metrics.group_differences`). It takes clips as independent, which clips of one speaker
are not: a group of few speakers may differ because of these speakers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.evaluation.slices import MAX_SLICES
from multistill.metrics.group_differences import group_scores, p_of_largest, simulate
from multistill.typing import DoubleArray, IntArray

MIN_CLIPS = 10
"""Labelled clips of a group that is compared."""
METRICS = ("uar", "accuracy")


def score_fairness(
    attributes: Mapping[str, Sequence[str | None]],
    speakers: Sequence[str],
    truth: IntArray,
    predicted: IntArray,
    classes: Sequence[str],
    simulations: int,
    seed: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """An entry for each attribute by which at least two groups can be compared.

    Args:
        attributes: by name, the group of each clip [N], None where unknown.
        truth, predicted: class indices [N], -1 of `truth` where the votes tie.
        speakers: of each clip [N], empty where unknown.
        confidence: share of the chance differences that lie below `chance`.

    Returns:
        per attribute `by`, `groups` (`name`, `clips`, `speakers`, those of its clips whose speaker
        is known, `without_speaker`, the number of the other clips, `uar`, `accuracy`), `left_out`
        (names of groups with too few clips), `classes` that every group has, and for `uar` and
        `accuracy` the `difference`, the groups that it is between, `highest` and `lowest`,
        `expected` and `chance` (mean and quantile of the simulated differences) and `p`; None for
        `uar` if the groups share fewer than two classes.
    """
    names_of_speakers = np.asarray(speakers, dtype=str)
    found = []
    for by, names in attributes.items():
        values = np.array([name or "" for name in names])
        known = (truth >= 0) & (values != "")
        distinct, counts = np.unique(values[known], return_counts=True)
        compared = distinct[counts >= MIN_CLIPS]
        if not 1 < len(compared) <= MAX_SLICES:
            continue
        rows = np.flatnonzero(known & np.isin(values, compared))
        group = np.searchsorted(compared, values[rows])
        shape = (len(compared), len(classes))
        cell = group * shape[1] + truth[rows]
        right = cell[predicted[rows] == truth[rows]]
        clips, correct = (
            np.bincount(each, minlength=shape[0] * shape[1]).reshape(shape)
            for each in (cell, right)
        )
        shared = np.flatnonzero(np.all(clips > 0, axis=0))
        scores = group_scores(clips, correct)
        chance = group_scores(clips, simulate(clips, correct, simulations, seed))
        found.append(
            {
                "by": by,
                "groups": [
                    {
                        "name": str(name),
                        "clips": int(clips[index].sum()),
                        **_speakers(names_of_speakers[rows[group == index]]),
                        **{metric: _finite(scores[metric][index]) for metric in METRICS},
                    }
                    for index, name in enumerate(compared)
                ],
                "left_out": [str(name) for name in distinct[counts < MIN_CLIPS]],
                "classes": [classes[index] for index in shared.tolist()],
                **{
                    metric: _largest(compared, scores[metric], chance[metric], confidence)
                    for metric in METRICS
                },
            }
        )
    return found


def _speakers(names: np.ndarray) -> dict[str, int]:
    known = names[names != ""]
    return {"speakers": len(np.unique(known)), "without_speaker": len(names) - len(known)}


def _largest(
    names: np.ndarray, scores: DoubleArray, chance: DoubleArray, confidence: float
) -> dict[str, Any] | None:
    if not np.isfinite(scores).all():
        return None
    simulated = np.ptp(chance, axis=-1)
    difference = float(np.ptp(scores))
    return {
        "difference": difference,
        "highest": str(names[scores.argmax()]),
        "lowest": str(names[scores.argmin()]),
        "expected": float(simulated.mean()),
        "chance": float(np.quantile(simulated, confidence)),
        "p": p_of_largest(difference, simulated),
    }


def _finite(value: DoubleArray) -> float | None:
    return float(value) if np.isfinite(value) else None
