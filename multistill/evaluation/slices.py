"""Parts of the test set that are scored on their own.

By session, corpus, gender, age, style, duration, rater agreement, and by whether the transcript is
also in training; each kind only if it varies over the test clips.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from multistill.evaluation.utterances import Majority, Utterances
from multistill.metrics.classification import (
    TIED,
    SufficientStatistics,
    class_support,
    from_confusion,
)
from multistill.metrics.intervals import Resampling, intervals
from multistill.typing import DoubleArray, IntArray

MAX_SLICES = 60
"""A table with more sessions than this is too long to be read; its slices are skipped."""
AGE_BOUNDS = (18, 30, 50)
AGE_BANDS = ("0 to 17 years", "18 to 29 years", "30 to 49 years", "50 years and over")
SMALL = 30
"""A slice of fewer labelled clips is marked as small."""
AGREEMENT = ((1.0, "all raters agree"), (2 / 3, "two thirds or more"), (0.5, "half or more"))
"""Lower bounds of the bands of the share of votes for the class with most, the highest first."""
DIVIDED = "less than half"


@dataclass(frozen=True)
class Slice:
    """A part of the test set: the kind of slice, its name, and a mask [N] of its clips."""

    by: str
    name: str
    mask: np.ndarray


def slices_of(clips: Utterances, majority: Majority) -> list[Slice]:
    """All slices of the test set that vary."""
    named = {"session": clips.sessions, **attributes(clips)}
    found: list[Slice] = []
    for by, names in named.items():
        distinct = sorted({name for name in names if name})
        if 1 < len(distinct) <= MAX_SLICES:
            values = np.array([name or "" for name in names])
            found += [Slice(by, name, values == name) for name in distinct]
    found += _durations(clips)
    found += _agreement(clips)
    known = majority.seen
    if known.any() and not known.all():
        found.append(Slice("transcript", "also in training", known))
        found.append(Slice("transcript", "not in training", ~known))
    return found


def attributes(clips: Utterances) -> dict[str, Sequence[str | None]]:
    """What groups of people or recordings can be compared by: a name per clip, None if unknown."""
    return {
        "corpus": clips.corpora,
        "gender": clips.genders,
        "age": [_age_band(age) for age in clips.ages],
        "style": clips.styles,
    }


def _age_band(age: float | None) -> str | None:
    return None if age is None else AGE_BANDS[bisect_right(AGE_BOUNDS, age)]


def _durations(clips: Utterances) -> list[Slice]:
    """Thirds of the labelled clips by duration; clips of equal duration are in one third."""
    labelled = clips.durations[clips.truth >= 0]
    if not len(labelled):
        return []
    # At the precision that is shown, so that a name says which clips are in it.
    bounds = np.unique(np.round(np.quantile(labelled, [1 / 3, 2 / 3], method="lower"), 1))
    third = np.searchsorted(bounds, np.round(clips.durations, 1))
    edges = [f"{bound:.1f}" for bound in bounds]
    names = [f"up to {edges[0]} s", *(f"above {a} to {b} s" for a, b in pairwise(edges))]
    names.append(f"above {edges[-1]} s")
    masks = [third == index for index in range(len(names))]
    found = [Slice("duration", *each) for each in zip(names, masks, strict=True) if each[1].any()]
    return found if len(found) > 1 else []


def _agreement(clips: Utterances) -> list[Slice]:
    """Bands of the share of votes for the class with most; none if the raters never disagree."""
    share = clips.shares.max(axis=1)
    labelled = clips.truth >= 0
    if not (labelled & (share < 1 - TIED)).any():
        return []
    found, rest = [], np.ones(len(share), dtype=bool)
    for bound, name in AGREEMENT:
        mask = rest & (share >= bound - TIED)
        found.append(Slice("rater agreement", name, mask))
        rest &= ~mask
    found.append(Slice("rater agreement", DIVIDED, rest))
    return [each for each in found if (each.mask & labelled).any()]


def score_slices(
    seeds: Sequence[DoubleArray],
    parts: Sequence[Slice],
    truth: IntArray,
    resampling: Resampling,
    statistics: SufficientStatistics,
    confidence: float,
) -> list[dict[str, Any]]:
    """Hard metrics per slice, means over seeds; a slice of one resampled group has no interval.

    Args:
        seeds: the (truth, prediction) columns of the rows [N, C x C], of each training.
    """
    masks = [part.mask for part in parts]
    sums = [resampling.group_sums(cells, masks) for cells in seeds]
    scored = []
    for number, part in enumerate(parts):
        clips = int((truth[part.mask] >= 0).sum())
        cluster = resampling.clusters.index[part.mask]
        support = class_support(truth[part.mask], cluster, statistics.classes)
        values = _means(
            from_confusion(statistics.confusion(cells[part.mask].sum(axis=0))) for cells in seeds
        )
        draws = _means(
            from_confusion(statistics.confusion(each[number]), support.present) for each in sums
        )
        groups = len(np.unique(cluster))
        metrics = intervals(values, support.without_rare(draws), confidence, groups)
        scored.append(
            {
                "by": part.by,
                "name": part.name,
                "clips": clips,
                "small": clips < SMALL,
                "metrics": metrics,
            }
        )
    return scored


def _means(seeds: Iterable[Mapping[str, DoubleArray]]) -> dict[str, DoubleArray]:
    """The mean of every metric over seeds."""
    found = list(seeds)
    return {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}
