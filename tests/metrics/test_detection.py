"""Classes against the rest: thresholds and balanced accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from multistill.metrics.classification import distributions, per_class, sigmoid
from multistill.metrics.detection import GRID, detection, fit_thresholds


def published_accuracy(detected: np.ndarray, own: np.ndarray) -> float:
    """(TP * N / P + TN) / (2 N), the weighted accuracy of Dai et al. 2021."""
    positives, others = own.sum(), (~own).sum()
    return float(
        ((detected & own).sum() * others / positives + (~detected & ~own).sum()) / 2 / others
    )


def test_thresholds_have_the_best_f1_of_the_grid_and_ties_do_not_count() -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = rng.random((60, 3)), rng.integers(-1, 3, 60)
    probabilities[np.arange(60), truth] += 0.3
    found = fit_thresholds(probabilities, truth)
    assert found is not None
    for label, threshold in enumerate(found):
        rows = truth >= 0

        def f1(value: float, label: int = label, rows: np.ndarray = rows) -> float:
            rows_of = detection(probabilities[rows] >= value, truth[rows], ["a", "b", "c"])
            return float(rows_of[label]["f1"])

        assert f1(threshold) == max(map(f1, GRID))
    assert fit_thresholds(probabilities, np.full(60, -1)) is None


def test_a_class_that_validation_lacks_keeps_one_half() -> None:
    assert fit_thresholds(np.array([[0.9, 0.9], [0.8, 0.1]]), np.array([0, 0]))[1] == 0.5  # type: ignore[index]


def test_balanced_accuracy_is_the_published_one() -> None:
    rng = np.random.default_rng(1)
    truth, detected = rng.integers(0, 3, 50), rng.random((50, 3)) > 0.6
    for label, row in enumerate(detection(detected, truth, ["a", "b", "c"])):
        expected = published_accuracy(detected[:, label], truth == label)
        assert row["balanced_accuracy"] == pytest.approx(expected)
    predicted = rng.integers(0, 3, 50)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (truth, predicted), 1)
    for label, row in enumerate(per_class(confusion, ["a", "b", "c"])):
        expected = published_accuracy(predicted == label, truth == label)
        assert row["balanced_accuracy"] == pytest.approx(expected)


def test_saying_no_to_everything_has_one_half() -> None:
    truth = np.array([0, 0, 0, 1])
    rows = detection(np.zeros((4, 2), bool), truth, ["a", "b"])
    assert [row["balanced_accuracy"] for row in rows] == [0.5, 0.5]
    assert [row["precision"] for row in rows] == [None, None]


def test_distributions_of_one_vs_rest_are_sigmoids_over_their_sum() -> None:
    logits = np.array([[2.0, -1.0, 0.0], [-900.0, 900.0, 0.0]])
    shares = distributions(logits, "one-vs-rest")
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares[0], sigmoid(logits[0]) / sigmoid(logits[0]).sum())
    assert shares[1].argmax() == 1
