"""The logits of an ensemble: a mixture of its members' probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from multistill.inference.ensemble import combine


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_softmax_of_the_ensemble_is_the_mean_of_the_members_probabilities(members, seed):
    logits = list(np.random.default_rng(seed).normal(scale=4, size=(members, 6, 7)))
    expected = np.mean([softmax(member, axis=1) for member in logits], axis=0)
    np.testing.assert_allclose(softmax(combine(logits), axis=1), expected, atol=1e-6)


def test_a_member_with_larger_logits_has_no_larger_weight():
    small, large = np.array([[0.0, 1.0]]), np.array([[100.0, 0.0]])
    combined = softmax(combine([small, small, large]))
    assert combined[0, 1] == pytest.approx(2 * 0.7311 / 3, abs=1e-3)
    assert np.mean([small, small, large], axis=0)[0].argmax() == 0  # a mean of logits flips it


def test_single_members_and_raw_outputs_keep_their_scale():
    outputs = np.array([[0.1, 0.9], [0.6, 0.4]], dtype=np.float32)
    np.testing.assert_array_equal(combine([outputs]), outputs)
    np.testing.assert_allclose(combine([outputs, outputs + 0.2], raw=True), outputs + 0.1)
