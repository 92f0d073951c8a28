"""Top-2 accuracy, and accuracy that counts tied classes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.predictions import random_predictions
from sklearn.metrics import top_k_accuracy_score

from multistill.metrics.classification import SufficientStatistics, is_right


def measured(truth: np.ndarray, probabilities: np.ndarray, shares: np.ndarray) -> dict:
    statistics = SufficientStatistics(7)
    return statistics.measure(statistics.rows(truth, probabilities, shares).sum(axis=0))


def test_top_2_is_that_of_scikit_learn_over_the_labelled_clips() -> None:
    truth, probabilities, shares = random_predictions()
    expected = top_k_accuracy_score(truth, probabilities, k=2, labels=np.arange(7))
    with_ties = np.concatenate([truth, [-1] * 40])
    more = [np.concatenate([each, each[:40]]) for each in (probabilities, shares)]
    for found in (measured(truth, probabilities, shares), measured(with_ties, *more)):
        assert found["top2"] == pytest.approx(expected)
        assert found["accuracy"] < found["top2"] < 1


def test_a_baseline_counts_its_answer_and_the_most_probable_other_class() -> None:
    """The mode of the distribution need not be the answer."""
    statistics = SufficientStatistics(7)
    distribution = np.tile([0.4, 0.3, 0.2, 0.1, 0, 0, 0], (4, 1))
    rows = statistics.rows_of(np.arange(4), np.full(4, 2), distribution, distribution)
    assert statistics.measure(rows.sum(axis=0))["top2"] == 0.5, "classes 2 and 0 are right"


def test_an_answer_is_right_if_it_is_one_of_the_tied_classes() -> None:
    third = np.float32(1) / np.float32(3)
    tied = np.array([third, third, third, 0, 0, 0, 0], dtype=np.float32).astype(float)
    one = np.eye(7)[3]
    shares = np.stack([tied, tied, tied, one, one])
    truth = np.array([-1, -1, -1, 3, 3])
    right = is_right(truth, np.array([0, 2, 3, 3, 0]), shares)
    assert right.tolist() == [True, True, False, True, False]
    found = measured(truth, np.eye(7)[[0, 2, 3, 3, 0]], shares)
    assert found["accuracy_with_ties"] == pytest.approx(3 / 5)
    assert found["accuracy"] == pytest.approx(1 / 2), "ties have no label"


def test_a_label_decides_where_there_is_one_whatever_the_votes() -> None:
    """A corpus may have a label of its own."""
    assert is_right(np.array([1]), np.array([1]), np.eye(7)[[0]]).all()
    assert not is_right(np.array([1]), np.array([0]), np.eye(7)[[0]]).any()
