"""Paired comparisons of a student with its control: verdicts and paired resamples."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.predictions import sessions_of

from multistill.evaluation.comparisons import Scores, compare, verdict
from multistill.metrics.classification import SufficientStatistics
from multistill.metrics.intervals import Resampling


def scores(correct: np.ndarray, resampling: Resampling) -> Scores:
    """Scores of a model whose predictions are correct where `correct` is True."""
    truth = np.arange(len(correct)) % 7
    predicted = np.where(correct, truth, (truth + 1) % 7)
    statistics = SufficientStatistics()
    uniform = np.full((len(truth), 7), 1 / 7)
    rows = statistics.rows_of(truth, predicted, uniform, uniform)
    values = statistics.measure(rows.sum(axis=0))
    return Scores(values, statistics.measure(resampling.sums(rows)), predicted)


def test_a_better_student_was_helped_and_a_worse_one_was_not() -> None:
    size = 420
    truth = np.arange(size) % 7
    rng = np.random.default_rng(7)
    resampling = Resampling(sessions_of([35] * 12), 300, seed=8)
    better, worse = rng.random(size) < 0.8, rng.random(size) < 0.5
    first, second = scores(better, resampling), scores(worse, resampling)
    comparison = compare("student", first, "control", second, truth, 0.95)
    assert comparison["verdict"] == "helped"
    assert "distillation helped" in comparison["sentence"]
    reverse = compare("student", second, "control", first, truth, 0.95)
    assert reverse["verdict"] == "did not help"
    same = compare("student", first, "control", first, truth, 0.95)
    assert same["verdict"] == "did not help"  # the interval is exactly zero
    value = comparison["differences"]["macro_f1"]["value"]
    assert reverse["differences"]["macro_f1"]["value"] == pytest.approx(-value)
    assert comparison["mcnemar"]["p"] < 0.01


def test_an_interval_around_zero_gives_no_verdict() -> None:
    assert verdict(-0.01, 0.2) == "cannot tell"
    assert verdict(None, None) == "cannot tell"
    assert verdict(-0.2, -0.1) == "did not help"


def test_paired_differences_vary_less_than_unpaired_ones() -> None:
    """Two models that are correct on almost the same clips differ little in every resample."""
    rng = np.random.default_rng(9)
    correct = rng.random(420) < 0.6
    almost = correct.copy()
    almost[::60] = ~almost[::60]
    resampling = Resampling(sessions_of([35] * 12), 300, seed=10)
    first, second = scores(correct, resampling), scores(almost, resampling)
    paired = (first.draws["uar"] - second.draws["uar"]).std()
    assert paired < first.draws["uar"].std() / 2


@pytest.mark.parametrize("untrained", ["student", "control"])
def test_nothing_is_said_about_distillation_where_a_training_learnt_nothing(
    untrained: str,
) -> None:
    size = 420
    truth = np.arange(size) % 7
    rng = np.random.default_rng(7)
    resampling = Resampling(sessions_of([35] * 12), 300, seed=8)
    better = scores(rng.random(size) < 0.8, resampling)
    worse = scores(rng.random(size) < 0.2, resampling)
    reasons = {untrained: "not trained: raise the rate"}
    comparison = compare("student", better, "control", worse, truth, 0.95, reasons)
    assert comparison["verdict"] == "not trained"
    assert "not trained: raise the rate" in comparison["sentence"]
    assert "helped" not in comparison["sentence"] and untrained in comparison["sentence"]
    other = compare("student", better, "control", worse, truth, 0.95, {"teacher": "not trained"})
    assert other["verdict"] == "helped"
