"""Metrics against scikit-learn and hand-computed values; intervals and comparisons."""

from __future__ import annotations

import numpy as np
import pytest
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

from multistill.evaluation.comparisons import Scored, compare, verdict
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import (
    HARD,
    SufficientStatistics,
    entropy,
    regressed,
    softmax,
)
from multistill.metrics.intervals import (
    FEW,
    Clusters,
    Resampling,
    choose_clusters,
    interval,
    intervals,
)

LABELS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def random_case(size: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 7, size)
    probabilities = softmax(draw.normal(size=(size, 7)) + 1.5 * np.eye(7)[truth])
    shares = draw.dirichlet(np.full(7, 0.4), size)
    return truth, probabilities, shares


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_hard_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth = np.array([t for t, _ in pairs])
    predicted = np.array([p for _, p in pairs])
    flat = np.full((len(pairs), 7), 1 / 7)
    sheet = SufficientStatistics()
    found = sheet.measure(sheet.rows_of(truth, predicted, flat, flat).sum(axis=0))
    present = np.unique(truth)
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "uar": np.mean([(predicted[truth == c] == c).mean() for c in present]),
        "macro_f1": f1_score(truth, predicted, labels=present, average="macro"),
        "weighted_f1": f1_score(truth, predicted, average="weighted", zero_division=0),
    }
    for name in HARD:
        assert found[name] == pytest.approx(expected[name]), name


def test_confusion_rows_are_truth_and_columns_predictions() -> None:
    truth, probabilities, shares = random_case()
    sheet = SufficientStatistics()
    found = sheet.confusion(sheet.rows(truth, probabilities, shares).sum(axis=0))
    expected = confusion_matrix(truth, probabilities.argmax(axis=1), labels=range(7))
    assert (found == expected).all()


def test_probability_scores_agree_with_their_definitions() -> None:
    truth, probabilities, shares = random_case()
    sheet = SufficientStatistics(10)
    found = sheet.measure(sheet.rows(truth, probabilities, shares).sum(axis=0))
    assert found["nll"] == pytest.approx(log_loss(truth, probabilities, labels=range(7)))
    assert found["brier"] == pytest.approx(
        ((probabilities - np.eye(7)[truth]) ** 2).sum(axis=1).mean()
    )
    js = [jensenshannon(p, s) ** 2 for p, s in zip(probabilities, shares, strict=True)]
    assert found["js"] == pytest.approx(np.mean(js), abs=1e-5)
    assert found["tv"] == pytest.approx(np.abs(probabilities - shares).sum(axis=1).mean() / 2)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(expected)


def test_balanced_accuracy_is_uar_when_every_class_occurs() -> None:
    truth, probabilities, shares = random_case()
    sheet = SufficientStatistics()
    found = sheet.measure(sheet.rows(truth, probabilities, shares).sum(axis=0))
    assert found["uar"] == pytest.approx(
        balanced_accuracy_score(truth, probabilities.argmax(axis=1))
    )


def test_ties_count_for_soft_metrics_and_for_no_hard_one() -> None:
    truth, probabilities, shares = random_case(40)
    tied = truth.copy()
    tied[:10] = -1
    sheet = SufficientStatistics()
    rows = sheet.rows(tied, probabilities, shares)
    alone = sheet.rows(truth[10:], probabilities[10:], shares[10:])
    some, rest = sheet.measure(rows.sum(axis=0)), sheet.measure(alone.sum(axis=0))
    for name in (*HARD, "ece", "brier", "nll"):
        assert some[name] == pytest.approx(rest[name]), name
    every = sheet.measure(sheet.rows(truth, probabilities, shares).sum(axis=0))
    assert some["kl"] == pytest.approx(every["kl"])
    assert some["kl"] != pytest.approx(rest["kl"])


def test_a_set_of_ties_only_has_no_hard_metrics_and_no_warning() -> None:
    _, probabilities, shares = random_case(5)
    sheet = SufficientStatistics()
    with np.errstate(all="raise"):
        rows = sheet.rows(np.full(5, -1), probabilities, shares).sum(axis=0)
        found = sheet.measure(rows)
    assert all(np.isnan(found[name]) for name in HARD)
    assert np.isfinite(found["js"])
    assert interval(float(found["uar"]), np.array([np.nan]), 0.95)["value"] is None


def test_a_perfect_prediction_diverges_from_nothing() -> None:
    shares = np.eye(7)
    sheet = SufficientStatistics()
    found = sheet.measure(sheet.rows(np.arange(7), shares, shares).sum(axis=0))
    assert found["uar"] == 1.0
    for name in ("kl", "js", "tv", "brier", "nll", "ece"):
        assert found[name] == pytest.approx(0.0, abs=1e-6)
    assert entropy(shares) == pytest.approx(0.0, abs=1e-5)


def clusters_of(counts: list[int]) -> Clusters:
    return Clusters("session", np.repeat(np.arange(len(counts)), counts), len(counts))


@pytest.mark.parametrize("sessions", [3, FEW + 2])
def test_every_draw_has_as_many_sessions_as_the_test_set(sessions: int) -> None:
    size = 20
    rows = np.ones((sessions * size, 1))
    sums = Resampling(clusters_of([size] * sessions), 50, seed=1).sums(rows)
    assert sums.shape == (50, 1)
    assert (sums == sessions * size).all()


def test_whole_sessions_are_drawn_where_there_are_many() -> None:
    sessions, size = FEW, 7
    clusters = clusters_of([size] * sessions)
    rows = np.eye(sessions)[clusters.index]
    sums = Resampling(clusters, 40, seed=2).sums(rows)
    assert (sums % size == 0).all()
    assert sums.std() > 0


@pytest.mark.parametrize("sessions", [3, FEW + 2])
def test_groups_are_drawn_together_with_the_whole(sessions: int) -> None:
    """Two halves of the clips add up to the whole in every single draw."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(sessions * 9, 2))
    half = draw.random(len(rows)) < 0.5
    resampling = Resampling(clusters_of([9] * sessions), 40, seed=1)
    first, second = resampling.sums_of(rows, [half, ~half])
    assert np.allclose(first + second, resampling.sums(rows))
    nothing = resampling.sums_of(rows, [np.zeros(len(rows), dtype=bool)])[0]
    assert (nothing == 0).all()


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    clusters = clusters_of([20, 20, 20])
    first = Resampling(clusters, 30, seed=3).sums(rows)
    assert (first == Resampling(clusters, 30, seed=3).sums(rows)).all()
    assert (first != Resampling(clusters, 30, seed=4).sums(rows)).any()


def test_two_sessions_that_agree_still_leave_an_interval() -> None:
    right = np.tile([1.0, 0.0], 40)[:, None]
    sums = Resampling(clusters_of([40, 40]), 400, seed=5).sums(right)
    found = interval(0.5, sums[:, 0] / 80, 0.95)
    assert found["low"] < 0.5 < found["high"]  # type: ignore[operator]


def test_dependent_utterances_widen_the_interval() -> None:
    """Sessions that are right or wrong as a whole: the session interval is far wider."""
    sessions, size = 20, 50
    right = np.repeat(np.arange(sessions) % 2, size).astype(float)[:, None]
    by_session = Resampling(clusters_of([size] * sessions), 600, seed=6).sums(right)[:, 0]
    single = Clusters("utterance", np.arange(sessions * size), sessions * size)
    by_clip = Resampling(single, 600, seed=6).sums(right)[:, 0]
    assert by_session.std() > 4 * by_clip.std()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(120):
        draw = np.random.default_rng(seed)
        level = np.clip(draw.normal(0.6, 0.1, 16), 0, 1)
        right = (draw.random((16, 25)) < level[:, None]).astype(float).reshape(-1, 1)
        sums = Resampling(clusters_of([25] * 16), 300, seed).sums(right)[:, 0]
        found = interval(float(right.mean()), sums / len(right), 0.95)
        covered += bool(found["low"] <= 0.6 <= found["high"])  # type: ignore[operator]
    assert 0.85 <= covered / 120 <= 1.0


def test_every_interval_holds_its_value_that_of_the_ece_included() -> None:
    truth, probabilities, shares = random_case(90)
    sheet = SufficientStatistics()
    rows = sheet.rows(truth, probabilities, shares)
    values = sheet.measure(rows.sum(axis=0))
    draws = sheet.measure(Resampling(clusters_of([30] * 3), 300, seed=12).sums(rows))
    found = intervals(values, draws, 0.95)
    assert set(found) == {*HARD, "ece", "brier", "nll", "kl", "js", "tv"}
    for name, score in found.items():
        assert score["low"] <= score["value"] <= score["high"], name  # type: ignore[operator]


def test_units_fall_back_from_sessions_to_speakers_to_utterances() -> None:
    assert choose_clusters(["a", "b"], ["x", "x"]).unit == "session"
    assert choose_clusters(["a", "a"], ["x", "y"]).unit == "speaker"
    assert choose_clusters(["a", "a"], ["x", "x"]).unit == "utterance"


def scored(right: np.ndarray, resampling: Resampling) -> Scored:
    truth = np.arange(len(right)) % 7
    predicted = np.where(right, truth, (truth + 1) % 7)
    sheet = SufficientStatistics()
    flat = np.full((len(truth), 7), 1 / 7)
    rows = sheet.rows_of(truth, predicted, flat, flat)
    return Scored(sheet.measure(rows.sum(axis=0)), sheet.measure(resampling.sums(rows)), predicted)


def test_a_better_student_is_said_to_be_helped_and_a_worse_one_not() -> None:
    size = 420
    truth = np.arange(size) % 7
    draw = np.random.default_rng(7)
    resampling = Resampling(clusters_of([35] * 12), 300, seed=8)
    better, worse = draw.random(size) < 0.8, draw.random(size) < 0.5
    first, second = scored(better, resampling), scored(worse, resampling)
    found = compare("student", first, "control", second, truth, 0.95)
    assert found["verdict"] == "helped"
    assert "distillation helped" in found["sentence"]
    reverse = compare("student", second, "control", first, truth, 0.95)
    assert reverse["verdict"] == "did not help"
    same = compare("student", first, "control", first, truth, 0.95)
    assert same["verdict"] == "did not help"  # the interval is exactly zero
    value = found["differences"]["macro_f1"]["value"]
    assert reverse["differences"]["macro_f1"]["value"] == pytest.approx(-value)
    assert found["mcnemar"]["p"] < 0.01


def test_an_interval_around_zero_tells_nothing() -> None:
    assert verdict(-0.01, 0.2) == "cannot tell"
    assert verdict(None, None) == "cannot tell"
    assert verdict(-0.2, -0.1) == "did not help"


def test_paired_draws_are_narrower_than_unpaired_ones() -> None:
    """Two models that are right on the same clips differ by little, whatever is drawn."""
    draw = np.random.default_rng(9)
    right = draw.random(420) < 0.6
    almost = right.copy()
    almost[::60] = ~almost[::60]
    resampling = Resampling(clusters_of([35] * 12), 300, seed=10)
    first, second = scored(right, resampling), scored(almost, resampling)
    paired = (first.draws["uar"] - second.draws["uar"]).std()
    assert paired < first.draws["uar"].std() / 2


@pytest.mark.parametrize("true_temperature", [0.5, 3.0])
def test_the_fitted_temperature_undoes_a_known_one(true_temperature: float) -> None:
    draw = np.random.default_rng(11)
    logits = draw.normal(size=(4000, 7)) * 2
    truth = np.array([draw.choice(7, p=p) for p in softmax(logits)])
    found = fit_temperature(logits * true_temperature, truth)
    assert found == pytest.approx(true_temperature, rel=0.15)


def test_no_decided_validation_clip_means_no_temperature() -> None:
    assert fit_temperature(np.zeros((3, 7)), np.full(3, -1)) is None


def test_outputs_of_squared_error_are_shares_and_stay_sharp() -> None:
    outputs = np.array([[0.9, 0.1, 0.0, -0.05, 0.0, 0.0, 0.0]])
    shares = regressed(outputs)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0, 0] == pytest.approx(0.9, abs=1e-5)
    assert shares.min() > 0
    assert softmax(outputs)[0, 0] < 0.3, "what softmax would make of them"
