"""Test sets drawn from a known population of sessions and of trainings.

A session has a difficulty of its own, common to all models; a training has a seed of its own. The
true value of a metric is that of infinitely many sessions and seeds, so the coverage of intervals
and the rate of false verdicts can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from multistill.evaluation.comparisons import Scores, compare
from multistill.metrics.classification import HARD, class_support, from_confusion
from multistill.metrics.intervals import Clusters, Resampling, intervals

CLASSES = 7
PRIOR = np.array([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])


@dataclass(frozen=True)
class Population:
    """Deviations, in logits, of sessions, of trainings, and of trainings within a session."""

    sessions: float = 0.6
    seeds: float = 0.4
    interaction: float = 0.2

    def test_set(self, sessions: int, clips: int, rng: np.random.Generator) -> TestSet:
        truth = np.stack(
            [rng.multinomial(clips, rng.dirichlet(20 * PRIOR)) for _ in range(sessions)]
        )
        return TestSet(self, truth, _logits(self.sessions, rng, sessions))

    def true_metrics(self, rng: np.random.Generator) -> dict[str, float]:
        """Metrics of one training without a seed effect, over 4,000 sessions of 400 clips."""
        single = Population(self.sessions, 0.0, 0.0)
        cells = single.test_set(4_000, 400, rng).confusions(rng)
        return {m: float(v) for m, v in from_confusion(cells.sum(axis=0)).items()}


@dataclass(frozen=True)
class TestSet:
    """Clips of each class in each session [K, C], and the sessions' difficulty [K, C, C]."""

    __test__ = False
    population: Population
    truth: np.ndarray
    difficulty: np.ndarray

    @property
    def clusters(self) -> Clusters:
        index = np.repeat(np.arange(len(self.truth)), self.truth.sum(axis=1))
        return Clusters("session", index, len(self.truth))

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([np.repeat(np.arange(CLASSES), counts) for counts in self.truth])

    def confusions(self, rng: np.random.Generator, gain: float = 0.0) -> np.ndarray:
        """Confusion matrix of one training in every session, [K, C, C]."""
        population, sessions = self.population, len(self.truth)
        model = (2.0 + gain) * np.eye(CLASSES) + _logits(population.seeds, rng)
        logits = model + self.difficulty + _logits(population.interaction, rng, sessions)
        exponentials = np.exp(logits)
        chances = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return rng.multinomial(self.truth, chances).astype(float)

    def predictions(self, rng: np.random.Generator, gain: float = 0.0) -> np.ndarray:
        """Predicted class of every clip [N], in the order of `labels`."""
        cells = self.confusions(rng, gain).astype(int)
        answers = np.arange(CLASSES)
        return np.concatenate([np.repeat(answers, row) for session in cells for row in session])


def _logits(deviation: float, rng: np.random.Generator, count: int | None = None) -> np.ndarray:
    shape = () if count is None else (count,)
    own = rng.normal(0, deviation, (*shape, 1, 1)) * np.eye(CLASSES)
    return np.asarray(own + rng.normal(0, deviation / 2, (*shape, CLASSES, CLASSES)))


def scored(
    test: TestSet, trainings: int, resamples: int, rng: np.random.Generator, gain: float = 0.0
) -> Scores:
    """The scores of several trainings, as the evaluation computes them."""
    clusters, labels = test.clusters, test.labels
    support = class_support(labels, clusters.index, 7)
    resampling = Resampling(clusters, resamples, seed=0)
    per_seed: dict[str, list[np.ndarray]] = {m: [] for m in HARD}
    draws: dict[str, list[np.ndarray]] = {m: [] for m in HARD}
    predicted = np.zeros(len(labels), np.int64)
    for _ in range(trainings):
        predicted = test.predictions(rng, gain)
        rows = np.zeros((len(labels), CLASSES * CLASSES))
        rows[np.arange(len(labels)), labels * CLASSES + predicted] = 1.0
        shape = (-1, CLASSES, CLASSES)
        values = from_confusion(rows.sum(axis=0).reshape(shape)[0])
        resampled = from_confusion(resampling.sums(rows).reshape(shape), support.present)
        for m, d in support.without_rare(resampled).items():
            per_seed[m].append(values[m])
            draws[m].append(d)
    means = {m: np.mean(values, axis=0) for m, values in per_seed.items()}
    averaged = {m: np.mean(values, axis=0) for m, values in draws.items()}
    return Scores(means, averaged, predicted, {m: np.array(v) for m, v in per_seed.items()})


def coverage(
    sessions: int, clips: int, simulations: int, resamples: int = 300, seed: int = 0
) -> dict[str, tuple[float, int]]:
    """Per metric: share of the intervals that hold the true value, and their number."""
    rng = np.random.default_rng(seed)
    population = Population(seeds=0.0, interaction=0.0)
    true = population.true_metrics(rng)
    hits: dict[str, list[bool]] = {m: [] for m in HARD}
    for _ in range(simulations):
        scores = scored(population.test_set(sessions, clips, rng), 1, resamples, rng)
        for m, score in intervals(scores.values, scores.draws, 0.95, sessions).items():
            if score["low"] is not None and score["high"] is not None:
                hits[m].append(score["low"] <= true[m] <= score["high"])
    return {m: (float(np.mean(hit)) if hit else float("nan"), len(hit)) for m, hit in hits.items()}


def verdicts(
    sessions: int,
    clips: int,
    trainings: int,
    simulations: int,
    *,
    gain: float = 0.0,
    resamples: int = 300,
    seed: int = 0,
) -> Iterator[str]:
    """Verdicts on two kinds of model that differ by `gain` (in logits) and their seeds alone."""
    rng = np.random.default_rng(seed)
    for _ in range(simulations):
        test = Population().test_set(sessions, clips, rng)
        first = scored(test, trainings, resamples, rng, gain)
        second = scored(test, trainings, resamples, rng)
        result = compare("student", first, "control", second, test.labels, sessions, 0.95)
        yield str(result["verdict"])
