"""Risk and coverage: area, oracle and threshold, whatever the order of equal confidences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.metrics.selective import (
    aurc,
    curve,
    oracle_aurc,
    rank,
    threshold_for,
    threshold_for_risk,
)

Clip = tuple[int, bool]
clips = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def area(found: list[Clip]) -> float:
    confidence, correct = (np.array(each) for each in zip(*found, strict=True))
    ranked = rank(confidence.astype(float), correct.astype(bool))
    return float(aurc(ranked.clips, ranked.errors))


def by_definition(errors: np.ndarray) -> float:
    """Mean over k of the share of errors among the first k."""
    return float((np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean())


@given(clips, st.randoms())
def test_the_order_of_clips_changes_nothing(found: list[Clip], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert area(shuffled) == pytest.approx(area(found), abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_without_ties_the_area_is_the_mean_risk(correct: list[bool]) -> None:
    found = [(len(correct) - index, right) for index, right in enumerate(correct)]
    assert area(found) == pytest.approx(by_definition(~np.array(correct)), abs=1e-9)


def test_ties_count_with_the_mean_over_their_orders() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 4, 60)
    correct = rng.random(60) < 0.6
    orders = [
        by_definition(~correct[np.lexsort((rng.random(60), -confidence))]) for _ in range(4000)
    ]
    mean = area(list(zip(confidence.tolist(), correct.tolist(), strict=True)))
    assert mean == pytest.approx(np.mean(orders), abs=4 * np.std(orders) / 4000**0.5)


@given(clips)
def test_the_oracle_is_never_worse_and_one_confidence_is_a_random_order(found: list[Clip]) -> None:
    errors = np.array([not right for _, right in found])
    total = np.array([float(len(found))]), np.array([float(errors.sum())])
    best = float(oracle_aurc(*total))
    assert best == pytest.approx(by_definition(np.sort(errors)), abs=1e-9)
    assert best <= area(found) + 1e-9
    assert float(aurc(*total)) == pytest.approx(errors.mean(), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_threshold_keeps_at_least_the_coverage_and_no_higher_one_does(
    confidence: list[float], coverage: float
) -> None:
    values = np.array(confidence)
    threshold = threshold_for(values, coverage)
    assert (values >= threshold).mean() >= coverage - 1e-9
    assert (values > threshold).mean() < coverage


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.5, 0.9]), st.booleans()), min_size=1),
    st.floats(0.01, 0.99),
)
def test_a_threshold_keeps_at_most_the_risk_and_no_lower_one_does(
    clips: list[tuple[float, bool]], risk: float
) -> None:
    confidence = np.array([value for value, _ in clips])
    correct = np.array([right for _, right in clips])
    threshold = threshold_for_risk(confidence, correct, risk)
    if np.isfinite(threshold):
        assert 1 - correct[confidence >= threshold].mean() <= risk + 1e-9
    for lower in np.unique(confidence[confidence < threshold]):
        assert 1 - correct[confidence >= lower].mean() > risk - 1e-9


def test_a_long_curve_is_thinned_and_ends_at_the_error_of_all() -> None:
    rng = np.random.default_rng(1)
    correct = rng.random(5000) < 0.7
    coverage, risk = curve(rank(rng.random(5000), correct))
    assert len(coverage) <= 100 and coverage[-1] == 1.0
    assert risk[-1] == pytest.approx(1 - correct.mean())
    assert coverage == sorted(coverage)
