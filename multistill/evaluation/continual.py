"""Continual learning, scored: every corpus is tested after each one that was learnt.

R[t, i] is a metric on the test clips of corpus i after corpus t was learnt, both in the order of
learning, t and i from 1 to T (Lopez-Paz and Ranzato, "Gradient episodic memory for continual
learning", 2017, section 2.2; Chaudhry et al., "Riemannian walk", 2018, section 3):

    average            mean over i of R[T, i]
    backward transfer  mean over i < T of R[T, i] - R[i, i]
    forgetting         mean over i < T of max over t < T of R[t, i], minus R[T, i]

Once with the corpus of every clip given, and once without: then the most confident of the
classifiers learnt so far answers, after temperature scaling. A corpus that is not learnt yet has
none of its own, and the newest answers for it. Where one classifier serves all corpora, both are
the same.

    forgetting.json     all figures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multistill.config import EvaluationConfig
from multistill.evaluation.chosen_weight import chosen, scores_on_validation
from multistill.evaluation.course_models import FoldModels, Models, answer
from multistill.evaluation.courses import RESULTS, Course
from multistill.evaluation.utterances import Utterances, read_utterances
from multistill.features.cache import open_store
from multistill.metrics.classification import SufficientStatistics, class_support
from multistill.metrics.intervals import (
    BOUNDS,
    Resampling,
    choose_clusters,
    sampling_variance,
    satterthwaite,
    t_interval,
)
from multistill.typing import DoubleArray, IntArray
from multistill.workspace import write_json

METRICS = ("uar", "macro_f1", "weighted_f1")

Interval = dict[str, float | None]


@dataclass(frozen=True)
class Measured:
    """A metric by name on the test clips of one corpus, and on resamples of their groups.

    Attributes:
        values: mean over seeds.
        draws: the same on every resample.
        per_seed: of every seed.
        groups: number of groups that are resampled.
    """

    values: Mapping[str, float]
    draws: Mapping[str, DoubleArray]
    per_seed: Mapping[str, DoubleArray]
    groups: int


class CorpusClips:
    """The test clips of one corpus, of all folds."""

    def __init__(
        self, clips: Utterances, config: EvaluationConfig, seed: int, split_by: str
    ) -> None:
        self.clips = clips
        self.statistics = SufficientStatistics(len(clips.classes), config.calibration_bins)
        self.clusters = choose_clusters(clips.groups, clips.sessions, clips.speakers, split_by)
        self.resampling = Resampling(self.clusters, config.resamples, seed)
        self.support = class_support(clips.truth, self.clusters.index, len(clips.classes))

    def measure(self, probabilities: Sequence[DoubleArray]) -> Measured:
        """The metrics of every seed's distributions [N, C]."""
        clips = self.clips
        values, draws = [], []
        for own in probabilities:
            rows = self.statistics.rows(clips.truth, own, clips.shares)
            values.append(self.statistics.measure(rows.sum(axis=0)))
            resampled = self.statistics.measure(self.resampling.sums(rows), self.support.present)
            draws.append(self.support.without_rare(resampled))
        per_seed = {m: np.array([each[m] for each in values], float) for m in METRICS}
        return Measured(
            {m: float(per_seed[m].mean()) for m in METRICS},
            {m: np.mean([each[m] for each in draws], axis=0) for m in METRICS},
            per_seed,
            self.clusters.count,
        )


def score_courses(
    folds: Sequence[FoldModels],
    features: Path,
    courses: Sequence[Course],
    corpora: Sequence[str],
    config: EvaluationConfig,
    out: Path,
    seed: int,
    split_by: str,
    metric: str = "macro_f1",
) -> dict[str, Any]:
    """Score every method after every corpus; writes `forgetting.json` into `out`.

    Args:
        folds: one for a holdout; every test clip is in one fold.
        corpora: with a test clip each.
        seed: of the bootstrap resamples.
        split_by: what the split keeps together.
        metric: by which a weight of several is chosen on validation.

    Returns:
        JSON summary: `courses`, their number.
    """
    store = open_store(features)
    tests = [read_utterances(fold.manifest, "test", store) for fold in folds]
    trained = [read_utterances(fold.manifest, "train", store) for fold in folds]
    clips = Utterances.joined(tests)
    where = {name: np.flatnonzero(np.array(clips.corpora) == name) for name in corpora}
    tested = {
        name: CorpusClips(clips.take(rows), config, seed, split_by) for name, rows in where.items()
    }
    models = Models(folds, tests, store)
    confidence = config.confidence
    scored = [_score(course, models, tested, where, confidence) for course in courses]
    on_validation = scores_on_validation(courses, folds, store, metric)
    for entry, score, best in zip(
        scored, on_validation, chosen(courses, on_validation), strict=True
    ):
        entry |= {"validation": score, "chosen": best}
    results = {
        "corpora": {
            name: {
                "clips": int((part.clips.truth >= 0).sum()),
                "resampled": part.clusters.describe(),
                "majority": _majority(name, part, tests, trained, confidence),
            }
            for name, part in tested.items()
        },
        "confidence": confidence,
        "metric": metric,
        "seeds": models.seeds,
        "folds": len(folds),
        "courses": scored,
    }
    write_json(out / RESULTS, results)
    return {"courses": len(scored)}


def _score(
    course: Course,
    models: Models,
    tested: Mapping[str, CorpusClips],
    where: Mapping[str, IntArray],
    confidence: float,
) -> dict[str, Any]:
    """A row of the tables."""
    newest = course.order[-1]
    entry: dict[str, Any] = {
        "method": course.variant.name,
        "order": list(course.order),
        "head": course.head,
        "parameters": models.parameters(course.steps[-1][newest][0]),
    }
    for given, title in ((True, "given"), (False, "predicted")):
        matrix: list[dict[str, Measured]] = []
        right: list[float] = []
        for step, answers in enumerate(course.steps):
            learnt = course.order[: step + 1]
            seeds = [answer(answers, learnt, models, where, given, s) for s in range(models.seeds)]
            matrix.append(
                {
                    name: part.measure([probabilities[where[name]] for probabilities, _ in seeds])
                    for name, part in tested.items()
                }
            )
            right = [own for _, own in seeds]
        entry[title] = {
            "matrix": [
                {name: _cell(measured, confidence) for name, measured in row.items()}
                for row in matrix
            ],
            **_over_corpora(matrix, course.order, confidence),
        }
        if not given:
            several = len(set(course.steps[-1].values())) > 1
            entry[title]["task_accuracy"] = float(np.mean(right)) if several else None
    return entry


def _over_corpora(
    matrix: Sequence[Mapping[str, Measured]], order: Sequence[str], confidence: float
) -> dict[str, dict[str, Interval]]:
    """Average, backward transfer and forgetting of every metric, with intervals.

    Groups of the corpora are resampled independently, so variances of a mean over corpora add up.
    """
    last, old = matrix[-1], order[:-1]
    found: dict[str, dict[str, Interval]] = {"average": {}, "backward": {}, "forgetting": {}}
    for metric in METRICS:
        found["average"][metric] = _mean([(last[name], None) for name in order], metric, confidence)
        steps = [(last[name], matrix[step][name]) for step, name in enumerate(old)]
        found["backward"][metric] = _mean(steps, metric, confidence)
        best = [
            (max((row[name] for row in matrix[:-1]), key=lambda each: each.values[metric]), last)
            for name in old
        ]
        pairs = [(top, row[name]) for (top, row), name in zip(best, old, strict=True)]
        found["forgetting"][metric] = _mean(pairs, metric, confidence)
    return found


def _mean(
    terms: Sequence[tuple[Measured, Measured | None]], metric: str, confidence: float
) -> Interval:
    """Mean over corpora of a metric, or of the difference of two that were measured alike."""
    values, variances, degrees, of_seeds = [], [], [], []
    for first, second in terms:
        value, draws, seeds = first.values[metric], first.draws[metric], first.per_seed[metric]
        if second is not None:
            value, draws = value - second.values[metric], draws - second.draws[metric]
            seeds = seeds - second.per_seed[metric]
        values.append(value)
        variances.append(sampling_variance(draws, first.groups) / len(terms) ** 2)
        degrees.append(first.groups - 1)
        of_seeds.append(seeds)
    # One seed trains the model of every corpus, so its luck is one draw for all of them.
    means = np.mean(of_seeds, axis=0)
    if len(means) > 1:
        variances.append(float(np.var(means, ddof=1)) / len(means))
        degrees.append(len(means) - 1)
    freedom = satterthwaite(variances, degrees)
    bounds = (-1.0, 1.0) if terms[0][1] is not None else BOUNDS[metric]
    return t_interval(float(np.mean(values)), sum(variances), freedom, confidence, bounds)


def _cell(measured: Measured, confidence: float) -> dict[str, Interval]:
    return {metric: _mean([(measured, None)], metric, confidence) for metric in METRICS}


def _majority(
    corpus: str,
    part: CorpusClips,
    tests: Sequence[Utterances],
    trained: Sequence[Utterances],
    confidence: float,
) -> dict[str, Any]:
    """Always the most frequent class of the corpus's own training clips, of each fold."""
    classes = part.clips.classes
    labels, answers = [], []
    for test, train in zip(tests, trained, strict=True):
        truth = train.truth[np.array(train.corpora) == corpus]
        label = int(np.bincount(truth[truth >= 0], minlength=len(classes)).argmax())
        labels.append(classes[label])
        answers.append(np.tile(np.eye(len(classes))[label], (test.corpora.count(corpus), 1)))
    measured = part.measure([np.concatenate(answers)])
    return {"label": " or ".join(dict.fromkeys(labels)), "metrics": _cell(measured, confidence)}
