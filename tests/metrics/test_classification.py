"""Classification metrics against scikit-learn and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.predictions import random_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
)

from multistill.metrics.classification import (
    HARD,
    SufficientStatistics,
    entropy,
    from_confusion,
    shares_from_outputs,
    softmax,
)
from multistill.metrics.intervals import intervals

LABELS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_hard_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth = np.array([t for t, _ in pairs])
    predicted = np.array([p for _, p in pairs])
    uniform = np.full((len(pairs), 7), 1 / 7)
    statistics = SufficientStatistics(7)
    rows = statistics.rows_of(truth, predicted, uniform, uniform)
    metrics = statistics.measure(rows.sum(axis=0))
    present = np.unique(truth)
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "uar": np.mean([(predicted[truth == c] == c).mean() for c in present]),
        "macro_f1": f1_score(truth, predicted, labels=present, average="macro"),
        "weighted_f1": f1_score(truth, predicted, average="weighted", zero_division=0),
    }
    for name in HARD:
        assert metrics[name] == pytest.approx(expected[name]), name


def test_confusion_rows_are_truth_and_columns_predictions() -> None:
    truth, probabilities, shares = random_predictions()
    statistics = SufficientStatistics(7)
    confusion = statistics.confusion(statistics.rows(truth, probabilities, shares).sum(axis=0))
    expected = confusion_matrix(truth, probabilities.argmax(axis=1), labels=range(7))
    assert (confusion == expected).all()


def test_probability_scores_agree_with_their_definitions() -> None:
    truth, probabilities, shares = random_predictions()
    statistics = SufficientStatistics(7, 10)
    metrics = statistics.measure(statistics.rows(truth, probabilities, shares).sum(axis=0))
    assert metrics["nll"] == pytest.approx(log_loss(truth, probabilities, labels=range(7)))
    assert metrics["brier"] == pytest.approx(
        ((probabilities - np.eye(7)[truth]) ** 2).sum(axis=1).mean()
    )
    js = [jensenshannon(p, s) ** 2 for p, s in zip(probabilities, shares, strict=True)]
    assert metrics["js"] == pytest.approx(np.mean(js), abs=1e-5)
    assert metrics["tv"] == pytest.approx(np.abs(probabilities - shares).sum(axis=1).mean() / 2)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics["ece"] == pytest.approx(expected)


def test_uar_is_balanced_accuracy_if_every_class_occurs() -> None:
    truth, probabilities, shares = random_predictions()
    statistics = SufficientStatistics(7)
    metrics = statistics.measure(statistics.rows(truth, probabilities, shares).sum(axis=0))
    assert metrics["uar"] == pytest.approx(
        balanced_accuracy_score(truth, probabilities.argmax(axis=1))
    )


def test_ties_count_for_soft_metrics_and_for_no_hard_one() -> None:
    truth, probabilities, shares = random_predictions(40)
    tied = truth.copy()
    tied[:10] = -1
    statistics = SufficientStatistics(7)

    def measure(truth: np.ndarray, start: int = 0) -> dict[str, np.ndarray]:
        rows = statistics.rows(truth, probabilities[start:], shares[start:])
        return statistics.measure(rows.sum(axis=0))

    with_ties, without_ties = measure(tied), measure(truth[10:], 10)
    for name in (*HARD, "ece", "brier", "nll"):
        assert with_ties[name] == pytest.approx(without_ties[name]), name
    assert with_ties["kl"] == pytest.approx(measure(truth)["kl"])
    assert with_ties["kl"] != pytest.approx(without_ties["kl"])


def test_a_set_of_ties_only_has_no_hard_metrics_and_no_warning() -> None:
    _, probabilities, shares = random_predictions(5)
    statistics = SufficientStatistics(7)
    with np.errstate(all="raise"):
        rows = statistics.rows(np.full(5, -1), probabilities, shares).sum(axis=0)
        metrics = statistics.measure(rows)
    assert all(np.isnan(metrics[name]) for name in HARD)
    assert np.isfinite(metrics["js"])
    undefined = intervals(metrics, {m: np.full(5, np.nan) for m in metrics}, 0.95, 5)
    assert undefined["uar"] == {"value": None, "low": None, "high": None}


def test_means_over_classes_are_undefined_where_one_does_not_occur() -> None:
    confusion = np.array([[8, 0, 0], [1, 1, 0], [0, 0, 0]])
    every = from_confusion(confusion, np.array([True, True, True]))
    assert np.isnan(every["uar"]) and np.isnan(every["macro_f1"])
    assert every["accuracy"] == pytest.approx(0.9)
    assert every["weighted_f1"] == from_confusion(confusion)["weighted_f1"]
    both = from_confusion(confusion, np.array([True, True, False]))
    for name in HARD:
        assert both[name] == from_confusion(confusion)[name], name


def test_perfect_predictions_have_zero_divergence_and_loss() -> None:
    shares = np.eye(7)
    statistics = SufficientStatistics(7)
    metrics = statistics.measure(statistics.rows(np.arange(7), shares, shares).sum(axis=0))
    assert metrics["uar"] == 1.0
    for name in ("kl", "js", "tv", "brier", "nll", "ece"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-6)
    assert entropy(shares) == pytest.approx(0.0, abs=1e-5)


def test_outputs_of_squared_error_are_shares_and_stay_sharp() -> None:
    outputs = np.array([[0.9, 0.1, 0.0, -0.05, 0.0, 0.0, 0.0]])
    shares = shares_from_outputs(outputs)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0, 0] == pytest.approx(0.9, abs=1e-5)
    assert shares.min() > 0
    assert softmax(outputs)[0, 0] < 0.3, "softmax would flatten them"
