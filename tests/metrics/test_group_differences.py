"""Differences between groups against a permutation of the clips, and how often chance is found."""

from __future__ import annotations

import numpy as np
import pytest

from multistill.metrics.group_differences import group_scores, p_of_largest, simulate

CLIPS = np.array([[40, 10, 25], [15, 30, 20], [9, 8, 12]])


def test_the_simulation_is_a_permutation_within_classes() -> None:
    """Counts drawn at once have the moments of errors that are shuffled over single clips."""
    rng = np.random.default_rng(0)
    correct = (CLIPS * [0.8, 0.5, 0.3]).astype(int)
    drawn = simulate(CLIPS, correct, 4000, seed=1)
    assert (drawn.sum(axis=1) == correct.sum(axis=0)).all(), "each class keeps its recall"
    assert (drawn <= CLIPS).all()
    for column in range(3):
        group = np.repeat(np.arange(3), CLIPS[:, column])
        right = np.arange(len(group)) < correct[:, column].sum()
        shuffled = np.stack(
            [np.bincount(group[rng.permutation(right)], minlength=3) for _ in range(4000)]
        )
        assert drawn[:, :, column].mean(axis=0) == pytest.approx(shuffled.mean(axis=0), abs=0.15)
        assert drawn[:, :, column].std(axis=0) == pytest.approx(shuffled.std(axis=0), rel=0.08)


def test_equal_groups_are_found_as_often_as_the_level_says_and_unequal_ones_are_found() -> None:
    rng = np.random.default_rng(5)

    def p(recall: np.ndarray) -> float:
        correct = rng.binomial(CLIPS, recall)
        largest = np.ptp(group_scores(CLIPS, correct)["uar"])
        simulated = np.ptp(group_scores(CLIPS, simulate(CLIPS, correct, 200, 2))["uar"], axis=-1)
        return p_of_largest(float(largest), simulated)

    equal = [p(np.full((3, 3), 0.6)) for _ in range(400)]
    assert np.mean([each <= 0.05 for each in equal]) == pytest.approx(0.05, abs=0.035)
    worse = np.array([[0.8], [0.8], [0.3]]) * np.ones(3)
    assert np.mean([p(worse) <= 0.05 for _ in range(50)]) > 0.9


def test_uar_is_over_the_classes_that_all_groups_have() -> None:
    clips = np.array([[10, 10, 0], [10, 10, 10]])
    scores = group_scores(clips, np.array([[5, 10, 0], [10, 10, 0]]))
    assert scores["uar"].tolist() == [0.75, 1.0]
    assert scores["accuracy"][1] == pytest.approx(2 / 3)
    one = group_scores(np.array([[10, 0], [10, 10]]), np.array([[5, 0], [5, 5]]))
    assert np.isnan(one["uar"]).all()
