"""Bootstrap intervals: what is resampled, reproducibility, width and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.predictions import random_predictions, sessions_of

from multistill.metrics.classification import HARD, SufficientStatistics
from multistill.metrics.intervals import (
    FEW,
    Clusters,
    Resampling,
    choose_clusters,
    interval,
    intervals,
)


@pytest.mark.parametrize("sessions", [3, FEW + 2])
def test_every_resample_has_as_many_sessions_as_the_test_set(sessions: int) -> None:
    size = 20
    rows = np.ones((sessions * size, 1))
    sums = Resampling(sessions_of([size] * sessions), 50, seed=1).sums(rows)
    assert sums.shape == (50, 1)
    assert (sums == sessions * size).all()


def test_whole_sessions_are_resampled_if_there_are_many() -> None:
    sessions, size = FEW, 7
    clusters = sessions_of([size] * sessions)
    rows = np.eye(sessions)[clusters.index]
    sums = Resampling(clusters, 40, seed=2).sums(rows)
    assert (sums % size == 0).all()
    assert sums.std() > 0


@pytest.mark.parametrize("sessions", [3, FEW + 2])
def test_groups_use_the_same_resamples_as_the_whole_set(sessions: int) -> None:
    """Two halves of the clips add up to the whole set in every resample."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(sessions * 9, 2))
    half = rng.random(len(rows)) < 0.5
    resampling = Resampling(sessions_of([9] * sessions), 40, seed=1)
    first, second = resampling.group_sums(rows, [half, ~half])
    assert np.allclose(first + second, resampling.sums(rows))
    empty = resampling.group_sums(rows, [np.zeros(len(rows), dtype=bool)])[0]
    assert (empty == 0).all()


def test_equal_seeds_give_equal_resamples_and_other_seeds_do_not() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    clusters = sessions_of([20, 20, 20])
    sums = Resampling(clusters, 30, seed=3).sums(rows)
    assert (sums == Resampling(clusters, 30, seed=3).sums(rows)).all()
    assert (sums != Resampling(clusters, 30, seed=4).sums(rows)).any()


def test_two_sessions_that_agree_still_give_an_interval_with_width() -> None:
    correct = np.tile([1.0, 0.0], 40)[:, None]
    sums = Resampling(sessions_of([40, 40]), 400, seed=5).sums(correct)
    result = interval(0.5, sums[:, 0] / 80, 0.95)
    assert result["low"] < 0.5 < result["high"]  # type: ignore[operator]


def test_dependent_utterances_widen_the_interval() -> None:
    """If sessions are correct or wrong as a whole, the interval by session is far wider."""
    sessions, size = 20, 50
    correct = np.repeat(np.arange(sessions) % 2, size).astype(float)[:, None]
    by_session = Resampling(sessions_of([size] * sessions), 600, seed=6).sums(correct)[:, 0]
    utterances = Clusters("utterance", np.arange(sessions * size), sessions * size)
    by_utterance = Resampling(utterances, 600, seed=6).sums(correct)[:, 0]
    assert by_session.std() > 4 * by_utterance.std()


def test_interval_covers_the_true_value_about_as_often_as_its_confidence() -> None:
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        accuracy = np.clip(rng.normal(0.6, 0.1, 16), 0, 1)
        correct = (rng.random((16, 25)) < accuracy[:, None]).astype(float).reshape(-1, 1)
        sums = Resampling(sessions_of([25] * 16), 300, seed).sums(correct)[:, 0]
        result = interval(float(correct.mean()), sums / len(correct), 0.95)
        covered += bool(result["low"] <= 0.6 <= result["high"])  # type: ignore[operator]
    assert 0.85 <= covered / 120 <= 1.0


def test_every_interval_contains_its_value_including_that_of_the_ece() -> None:
    truth, probabilities, shares = random_predictions(90)
    statistics = SufficientStatistics()
    rows = statistics.rows(truth, probabilities, shares)
    values = statistics.measure(rows.sum(axis=0))
    draws = statistics.measure(Resampling(sessions_of([30] * 3), 300, seed=12).sums(rows))
    result = intervals(values, draws, 0.95)
    assert set(result) == {*HARD, "ece", "brier", "nll", "kl", "js", "tv"}
    for name, score in result.items():
        assert score["low"] <= score["value"] <= score["high"], name  # type: ignore[operator]


def test_resampling_falls_back_from_sessions_to_speakers_to_utterances() -> None:
    assert choose_clusters(["a", "b"], ["x", "x"]).unit == "session"
    assert choose_clusters(["a", "a"], ["x", "y"]).unit == "speaker"
    assert choose_clusters(["a", "a"], ["x", "x"]).unit == "utterance"
