"""Intervals: what is resampled, one metric per interval, width and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.predictions import random_predictions, sessions_of
from helpers.simulated_test_sets import coverage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, t

from multistill.metrics.classification import (
    CALIBRATION,
    HARD,
    LENIENT,
    SOFT,
    SufficientStatistics,
    class_support,
)
from multistill.metrics.intervals import (
    Clusters,
    Resampling,
    choose_clusters,
    intervals,
    sampling_variance,
    satterthwaite,
    t_interval,
)


@pytest.mark.parametrize("sessions", [3, 22])
def test_every_resample_has_as_many_sessions_as_the_test_set(sessions: int) -> None:
    size = 20
    rows = np.ones((sessions * size, 1))
    sums = Resampling(sessions_of([size] * sessions), 50, seed=1).sums(rows)
    assert sums.shape == (50, 1)
    assert (sums == sessions * size).all()


@pytest.mark.parametrize("sessions", [3, 22])
def test_whole_sessions_are_resampled(sessions: int) -> None:
    size = 7
    clusters = sessions_of([size] * sessions)
    rows = np.eye(sessions)[clusters.index]
    sums = Resampling(clusters, 40, seed=2).sums(rows)
    assert (sums % size == 0).all()
    assert sums.std() > 0


@pytest.mark.parametrize("sessions", [3, 22])
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


def test_resamples_are_the_same_whether_they_are_kept_or_drawn_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resampling = Resampling(sessions_of([2] * 5), 30, seed=3)
    kept = resampling.counts()
    assert resampling.counts() is kept
    monkeypatch.setattr("multistill.metrics.intervals.MAX_KEPT", 30 * 5 - 1)
    assert (resampling.counts() == kept).all() and resampling.counts() is not kept


@pytest.mark.parametrize("sessions", [3, 5, 12, 60])
def test_the_interval_of_a_mean_of_sessions_is_that_of_students_t(sessions: int) -> None:
    """Of a mean over equal sessions, the textbook's interval is known."""
    values = np.random.default_rng(sessions).normal(0.5, 0.1, sessions)
    draws = Resampling(sessions_of([1] * sessions), 40_000, seed=5).sums(values[:, None])[:, 0]
    variance = sampling_variance(draws / sessions, sessions)
    result = t_interval(values.mean(), variance, sessions - 1, 0.95)
    half = t.ppf(0.975, sessions - 1) * values.std(ddof=1) / np.sqrt(sessions)
    assert result["low"] == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert result["high"] == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_the_resamples_are_those_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=15)
    draws = Resampling(sessions_of([1] * 15), 20_000, seed=5).sums(values[:, None])[:, 0] / 15
    reference = bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2))
    assert draws.std() == pytest.approx(float(reference.standard_error), rel=0.03)


def test_degrees_of_freedom_are_between_the_smallest_and_the_sum() -> None:
    assert satterthwaite([0.5], [7]) == pytest.approx(7)
    assert satterthwaite([1.0, 1.0, 1.0], [3, 3, 3]) == pytest.approx(9)
    assert satterthwaite([1.0, 1e-9], [3, 90]) == pytest.approx(3)
    assert 2 < satterthwaite([0.3, 0.7], [2, 5]) < 7
    assert satterthwaite([0.0, 0.0], [2, 5]) == 7
    assert satterthwaite([float("nan"), 1.0], [2, 5]) == 7, "there is no interval then"
    assert satterthwaite([1e-300, 1e-300], [2, 2]) == pytest.approx(4)


def test_dependent_utterances_widen_the_interval() -> None:
    """If sessions are correct or wrong as a whole, the interval by session is far wider."""
    sessions, size = 20, 50
    correct = np.repeat(np.arange(sessions) % 2, size).astype(float)[:, None]
    by_session = Resampling(sessions_of([size] * sessions), 600, seed=6).sums(correct)[:, 0]
    utterances = Clusters("utterance", np.arange(sessions * size), sessions * size)
    by_utterance = Resampling(utterances, 600, seed=6).sums(correct)[:, 0]
    assert by_session.std() > 4 * by_utterance.std()


@pytest.mark.parametrize(("sessions", "clips"), [(3, 100), (3, 500), (4, 30), (12, 36), (40, 30)])
def test_intervals_cover_the_true_value_as_often_as_they_say(sessions: int, clips: int) -> None:
    """Nominal 95 %; 200 simulations have a standard error of 1.5 %."""
    for metric, (share, count) in coverage(sessions, clips, 200, seed=sessions).items():
        assert share >= 0.9, metric
        assert count > 100, metric


def test_every_interval_contains_its_value_and_stays_in_the_metrics_range() -> None:
    truth, probabilities, shares = random_predictions(90)
    statistics = SufficientStatistics(7)
    rows = statistics.rows(truth, probabilities, shares)
    values = statistics.measure(rows.sum(axis=0))
    draws = statistics.measure(Resampling(sessions_of([30] * 3), 300, seed=12).sums(rows))
    result = intervals(values, draws, 0.95, 3)
    assert set(result) == {*HARD, *LENIENT, *CALIBRATION, *SOFT}
    for name, score in result.items():
        low, value, high = (score[key] for key in ("low", "value", "high"))
        assert 0 <= low <= value <= high, name  # type: ignore[operator]
        assert name in {"nll", "kl", "brier"} or high <= 1, name  # type: ignore[operator]


def test_one_group_or_an_undefined_metric_has_no_interval() -> None:
    values = {"uar": np.array(0.5), "accuracy": np.array(np.nan)}
    draws = {"uar": np.array([0.4, 0.6]), "accuracy": np.array([np.nan, np.nan])}
    assert intervals(values, draws, 0.95, 1)["uar"] == {"value": 0.5, "low": None, "high": None}
    assert intervals(values, draws, 0.95, 5)["accuracy"]["value"] is None
    assert intervals(values, draws | {"uar": draws["accuracy"]}, 0.95, 5)["uar"]["low"] is None


def test_a_class_of_one_session_never_moves_the_interval_to_another_metric() -> None:
    """A model that never finds a class of six clips: its UAR is over seven classes, or none."""
    rng = np.random.default_rng(3)
    sessions, size = 40, 30
    truth = rng.integers(0, 6, sessions * size)
    truth[:6] = 6
    predicted = np.where(rng.random(len(truth)) < 0.7, truth % 6, (truth + 1) % 6)
    statistics = SufficientStatistics(7)
    uniform = np.full((len(truth), 7), 1 / 7)
    rows = statistics.rows_of(truth, predicted, uniform, uniform)
    clusters = sessions_of([size] * sessions)
    support = class_support(truth, clusters.index, 7)
    draws = statistics.measure(Resampling(clusters, 400, seed=1).sums(rows), support.present)
    lacking = np.isnan(draws["uar"]).mean()
    assert lacking == pytest.approx((1 - 1 / sessions) ** sessions, abs=0.08)
    assert np.nanmax(draws["uar"]) < 6 / 7, "no resample is averaged over six classes"
    assert support.rare.tolist() == [False] * 6 + [True]
    values = statistics.measure(rows.sum(axis=0))
    scored = intervals(values, support.without_rare(draws), 0.95, sessions)
    assert scored["uar"]["low"] is None and scored["macro_f1"]["high"] is None
    assert scored["accuracy"]["low"] is not None and scored["weighted_f1"]["high"] is not None
    truth[size : size + 6] = 6  # now in two sessions
    assert not class_support(truth, clusters.index, 7).rare.any()


def test_the_unit_is_what_the_split_keeps_together() -> None:
    sessions = ["s1", "s2", "s3", "s4"]
    assert choose_clusters(sessions, sessions, ["a", "a", "b", "b"]).unit == "session"
    by_speaker = choose_clusters(["s1", "s1", "s3", "s3"], sessions, ["a", "a", "b", "b"])
    assert (by_speaker.unit, by_speaker.count) == ("speaker", 2)
    linked = choose_clusters(["s1", "s1", "s1", "s4"], sessions, ["a", "a", "b", "c"])
    assert (linked.unit, linked.count) == ("group", 2)


def test_with_one_group_the_next_unit_that_varies_is_resampled() -> None:
    one = ["g"] * 2
    assert choose_clusters(one, ["a", "b"], ["x", "x"]).unit == "session"
    assert choose_clusters(one, ["a", "a"], ["x", "y"]).unit == "speaker"
    assert choose_clusters(one, ["a", "a"], ["x", "x"]).unit == "utterance"


PARTITION = st.lists(st.integers(0, 3).map(str), min_size=1, max_size=12)


@given(PARTITION, PARTITION, st.booleans(), st.sampled_from(["session", "speaker", "column"]))
@settings(max_examples=200, deadline=None)
def test_one_group_is_told_whatever_is_resampled_instead(
    sessions: list[str], speakers: list[str], one: bool, by: str
) -> None:
    size = min(len(sessions), len(speakers))
    sessions, speakers = sessions[:size], speakers[:size]
    groups = ["g"] * size if one else (speakers if by == "speaker" else sessions)
    clusters = choose_clusters(groups, sessions, speakers, by)
    described = clusters.describe()
    single = len({*groups}) == 1
    assert clusters.one_group == described["one_group"] == single
    named = {"session": sessions, "speaker": speakers, "group": groups}
    kept = named[str(described["kept_together"])]
    assert len({*zip(kept, groups, strict=True)}) == len({*kept}) == len({*groups})
    if single:
        assert clusters.count > 1 or size == 1
        assert clusters.unit != "group"
    else:
        assert described["kept_together"] == clusters.unit
        assert clusters.count == len({*groups})


def test_a_speaker_with_many_sessions_and_a_session_with_many_speakers_are_one_group() -> None:
    many = [f"{n // 8}" for n in range(200)]
    one = ["A"] * 200
    speaker = choose_clusters(one, many, one, "speaker").describe()
    assert (speaker["one_group"], speaker["kept_together"]) == (True, "speaker")
    assert (speaker["unit"], speaker["count"], speaker["few"]) == ("session", 25, False)
    session = choose_clusters(one, one, many, "session").describe()
    assert (session["one_group"], session["kept_together"]) == (True, "session")
    assert (session["unit"], session["count"]) == ("speaker", 25)


def test_where_sessions_and_speakers_are_the_same_the_split_names_the_unit() -> None:
    """A table without a column `session` takes the speaker as the session, and the reverse."""
    people = ["a", "a", "b", "c"]
    for by, unit in (("speaker", "speaker"), ("session", "session"), ("column", "session")):
        assert choose_clusters(people, people, people, by).unit == unit
