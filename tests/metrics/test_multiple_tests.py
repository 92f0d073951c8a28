"""Holm's correction: against the published procedure, and the error rate of a family."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from multistill.metrics.multiple_tests import holm

LEVEL = 0.05


def stepwise(p_values: list[float], level: float) -> list[bool]:
    """Holm's procedure as published: from the smallest on, until one is above level / (m - i)."""
    rejected = [False] * len(p_values)
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > level / (len(p_values) - step):
            break
        rejected[index] = True
    return rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_adjusted_p_values_reject_as_the_stepwise_procedure(
    p_values: list[float], level: float
) -> None:
    adjusted = holm(p_values)
    certain = [abs(p - level) > 1e-9 for p in adjusted]  # products round
    found = [p <= level for p in adjusted]
    expected = stepwise(p_values, level)
    assert [f for f, c in zip(found, certain, strict=True) if c] == [
        e for e, c in zip(expected, certain, strict=True) if c
    ]
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_untested_ones_do_not_count_and_one_test_stays_what_it_is() -> None:
    assert holm([None, 0.03, None]) == [None, 0.03, None]
    assert holm([]) == []
    assert holm([None]) == [None]


def test_a_family_of_true_nulls_is_rarely_rejected_however_they_depend() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(size=(2000, 1))
    for share in (0.0, 0.7):
        z = np.sqrt(share) * common + np.sqrt(1 - share) * rng.normal(size=(2000, 4))
        p_values = 2 * norm.sf(abs(z))
        single = (p_values < LEVEL).any(axis=1).mean()
        family = np.mean([min(holm(list(row))) < LEVEL for row in p_values])
        assert single > 0.09, "uncorrected, one of four is often found"
        assert family < LEVEL + 0.015
