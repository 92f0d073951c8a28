"""The weight of a penalty that is best on validation, so that no test clip chooses it.

All weights of `continual.ewc.weights` are trained, and each is a row of the tables. The one to be
judged by is the one whose model after all corpora is best on their validation clips: the mean over
the corpora, with the corpus of each clip given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from multistill.evaluation.course_models import FoldModels, Models, answer
from multistill.evaluation.courses import Course
from multistill.evaluation.utterances import Utterances, read_utterances
from multistill.features.store import FeatureStore
from multistill.metrics.classification import SufficientStatistics


def scores_on_validation(
    courses: Sequence[Course], folds: Sequence[FoldModels], store: FeatureStore, metric: str
) -> list[float | None]:
    """Mean over corpora and seeds of a metric after the last corpus, on validation clips.

    Returns:
        of every course; None where its method has one weight, so that there is nothing to choose.
    """
    weighed = [len(same) > 1 for same in _alternatives(courses) for _ in same]
    if not any(weighed):
        return [None] * len(courses)
    valid = [read_utterances(fold.manifest, "valid", store) for fold in folds]
    models, clips = Models(folds, valid, store), Utterances.joined(valid)
    statistics = SufficientStatistics(len(clips.classes))
    corpora = np.array(clips.corpora)

    def score(course: Course) -> float:
        where = {name: np.flatnonzero(corpora == name) for name in course.order}
        values = []
        for seed in range(models.seeds):
            found, _ = answer(course.steps[-1], course.order, models, where, True, seed)
            rows = statistics.rows(clips.truth, found, clips.shares)
            values += [
                float(statistics.measure(rows[own].sum(axis=0))[metric]) for own in where.values()
            ]
        return float(np.mean(values))

    return [score(each) if own else None for each, own in zip(courses, weighed, strict=True)]


def chosen(courses: Sequence[Course], scores: Sequence[float | None]) -> list[bool]:
    """Whether a course has the best of its method's weights; of equals the lightest."""
    found: list[bool] = []
    for same in _alternatives(courses):
        own = scores[len(found) : len(found) + len(same)]
        known = [
            (score, -course.variant.weight)
            for course, score in zip(same, own, strict=True)
            if score is not None
        ]
        found += [
            score is not None and (score, -course.variant.weight) == max(known)
            for course, score in zip(same, own, strict=True)
        ]
    return found


def _alternatives(courses: Sequence[Course]) -> list[list[Course]]:
    """Courses that differ in nothing but the weight, which stand one after another."""

    def key(course: Course) -> tuple[tuple[str, ...], str]:
        return course.order, course.variant.method

    return [list(same) for _, same in groupby(courses, key)]
