"""Metrics and intervals against scikit-learn, scipy and resampling by a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from helpers.predictions import random_predictions, sessions_of
from scipy.optimize import minimize_scalar
from scipy.stats import entropy as kullback_leibler
from scipy.stats import t, ttest_ind
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

from multistill.evaluation.comparisons import Scores, difference
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import HARD, SufficientStatistics, per_class, softmax
from multistill.metrics.intervals import Resampling, intervals

CLASSES = np.arange(7)
MEASURES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "uar": lambda truth, answer: recall_score(truth, answer, labels=CLASSES, average="macro"),
    "macro_f1": lambda truth, answer: f1_score(truth, answer, labels=CLASSES, average="macro"),
    "weighted_f1": lambda truth, answer: f1_score(truth, answer, average="weighted"),
}
SESSIONS, CLIPS = 9, 140
RESAMPLES = 4000


def answers_of_two(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and the answers of two models that are better in some sessions than in others."""
    rng = np.random.default_rng(seed)
    truth = np.tile(CLASSES, SESSIONS * CLIPS // 7)
    skill = np.repeat(rng.uniform(0.3, 0.8, SESSIONS), CLIPS)
    answers = [
        np.where(rng.random(len(truth)) < skill + gain, truth, rng.integers(0, 7, len(truth)))
        for gain in (0.0, 0.1)
    ]
    return truth, answers[0], answers[1]


def scored(truth: np.ndarray, answer: np.ndarray) -> tuple[dict, dict]:
    """The metrics and their values on the project's resamples."""
    uniform = np.full((len(truth), 7), 1 / 7)
    statistics = SufficientStatistics(7)
    rows = statistics.rows_of(truth, answer, uniform, uniform)
    resampling = Resampling(sessions_of([CLIPS] * SESSIONS), RESAMPLES, seed=1)
    return statistics.measure(rows.sum(axis=0)), statistics.measure(resampling.sums(rows))


def by_loop(measure: Callable[[np.ndarray], float], resamples: int) -> float:
    """Half width of the 95 % interval of a metric of rows: sessions drawn one by one."""
    rng = np.random.default_rng(2)
    rows = np.arange(SESSIONS * CLIPS).reshape(SESSIONS, CLIPS)
    draws = [
        measure(np.concatenate([rows[i] for i in rng.integers(0, SESSIONS, SESSIONS)]))
        for _ in range(resamples)
    ]
    deviation = np.std(draws, ddof=1) * np.sqrt(SESSIONS / (SESSIONS - 1))
    return float(t.ppf(0.975, SESSIONS - 1) * deviation)


@pytest.mark.parametrize("metric", HARD)
def test_an_interval_is_that_of_a_plain_loop_over_resampled_sessions(metric: str) -> None:
    truth, answer, _ = answers_of_two(1)
    values, draws = scored(truth, answer)
    result = intervals(values, draws, 0.95, SESSIONS)[metric]
    measure = MEASURES[metric]
    assert result["value"] == pytest.approx(measure(truth, answer))
    half = by_loop(lambda rows: measure(truth[rows], answer[rows]), 300)
    assert result["high"] is not None and result["low"] is not None
    assert (result["high"] - result["low"]) / 2 == pytest.approx(half, rel=0.12)


def test_the_interval_of_a_difference_is_that_of_a_plain_loop() -> None:
    truth, first, second = answers_of_two(3)
    models = [Scores(*scored(truth, answer), answer) for answer in (second, first)]
    result = difference("macro_f1", *models, SESSIONS, 0.95)
    measure = MEASURES["macro_f1"]

    def gain(rows: np.ndarray) -> float:
        return measure(truth[rows], second[rows]) - measure(truth[rows], first[rows])

    assert result["value"] == pytest.approx(gain(np.arange(len(truth))))
    assert result["high"] is not None and result["low"] is not None
    half = (result["high"] - result["low"]) / 2
    assert half == pytest.approx(by_loop(gain, 300), rel=0.12)


@pytest.mark.parametrize("seeds", [(3, 3), (2, 5), (8, 3)])
def test_without_variance_of_sessions_a_difference_has_welchs_interval(
    seeds: tuple[int, int],
) -> None:
    rng = np.random.default_rng(sum(seeds))
    samples = [rng.normal(0.5, 0.1, seeds[0]), rng.normal(0.5, 0.03, seeds[1])]
    same = np.full(100, 0.5)
    models = [
        Scores({"uar": np.mean(s)}, {"uar": same}, np.zeros(1, int), {"uar": s}) for s in samples
    ]
    result = difference("uar", *models, 10**6, 0.95)
    expected = ttest_ind(*samples, equal_var=False).confidence_interval(0.95)
    assert result["low"] == pytest.approx(expected.low)
    assert result["high"] == pytest.approx(expected.high)


def test_scores_of_each_class_are_those_of_scikit_learn() -> None:
    truth, probabilities, shares = random_predictions()
    answer = probabilities.argmax(axis=1)
    statistics = SufficientStatistics(7)
    confusion = statistics.confusion(statistics.rows(truth, probabilities, shares).sum(axis=0))
    rows = per_class(confusion, CLASSES)
    expected = precision_recall_fscore_support(truth, answer, labels=CLASSES)
    for key, column in zip(("precision", "recall", "f1", "count"), expected, strict=True):
        assert [row[key] for row in rows] == pytest.approx(column.tolist()), key


def test_divergences_are_those_of_scipy() -> None:
    truth, probabilities, shares = random_predictions()
    statistics = SufficientStatistics(7)
    metrics = statistics.measure(statistics.rows(truth, probabilities, shares).sum(axis=0))
    kl = [kullback_leibler(s, p) for p, s in zip(probabilities, shares, strict=True)]
    assert metrics["kl"] == pytest.approx(np.mean(kl), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_minimizes_scikit_learns_log_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(500, 7)) * 3
    truth = np.array([rng.choice(7, p=p) for p in softmax(logits / (1 + seed))])
    best = minimize_scalar(
        lambda log: log_loss(truth, softmax(logits / np.exp(log)), labels=CLASSES),
        bounds=(-3, 3),
        method="bounded",
    )
    assert fit_temperature(logits, truth) == pytest.approx(np.exp(best.x), rel=0.01)
