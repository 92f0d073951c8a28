"""Inter-rater agreement against brute-force computations."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.agreement import (
    distinct,
    krippendorff_alpha,
    leave_one_rater_out,
    vote_entropy,
)

steady = settings(max_examples=60, deadline=None)


votes_table = st.lists(
    st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=12
).map(lambda rows: np.array(rows, dtype=np.int64))


def tallied(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return distinct(Counter(tuple(row) for part in parts for row in part.tolist()))


def answers(votes: np.ndarray) -> list[list[int]]:
    """The class of each answer, utterance by utterance."""
    return [[c for c, n in enumerate(row) for _ in range(n)] for row in votes.tolist()]


@steady
@given(votes_table)
def test_alpha_equals_that_of_the_coincidence_matrix(votes: np.ndarray) -> None:
    matrix = np.zeros((7, 7))
    for row in answers(votes):
        for a, b in permutations(row, 2):
            matrix[a, b] += 1 / (len(row) - 1)
    total, per_class = matrix.sum(), matrix.sum(axis=0)
    expected_disagreement = total**2 - (per_class**2).sum()
    alpha = krippendorff_alpha(*tallied(votes))
    if not expected_disagreement:
        assert alpha is None
        return
    differing = matrix.sum() - np.trace(matrix)
    assert alpha == pytest.approx(1 - (total - 1) * differing / expected_disagreement)


def test_alpha_is_one_for_agreement_and_near_zero_for_chance() -> None:
    agreed = np.zeros((7, 7), np.int64)
    np.fill_diagonal(agreed, 10)
    once = np.ones(7, np.int64)
    assert krippendorff_alpha(agreed, once) == 1.0
    rng = np.random.default_rng(0)
    chance = rng.multinomial(10, [1 / 7] * 7, size=4000)
    assert krippendorff_alpha(*tallied(chance)) == pytest.approx(0, abs=0.01)
    assert krippendorff_alpha(agreed[:1], once[:1]) is None
    assert krippendorff_alpha(agreed // 10, once) is None  # one answer each: nothing to compare


@steady
@given(votes_table)
def test_leave_one_rater_out_equals_a_loop_over_raters(votes: np.ndarray) -> None:
    pairs, total = [], 0
    for row in answers(votes):
        if len(row) < 2:
            continue
        for rater, answer in enumerate(row):
            total += 1
            rest = np.bincount(row[:rater] + row[rater + 1 :], minlength=7)
            if (rest == rest.max()).sum() == 1:
                pairs.append((int(rest.argmax()), answer))
    half = len(votes) // 2
    ceiling = leave_one_rater_out(*tallied(votes[:half], votes[half:]))
    if not pairs:
        assert ceiling is None
        return
    assert ceiling is not None
    winners, chosen = np.array(pairs).T
    assert ceiling.answers == len(pairs)
    assert ceiling.accuracy == pytest.approx((winners == chosen).mean())
    assert ceiling.uar == pytest.approx(
        np.mean([(chosen[winners == c] == c).mean() for c in set(winners.tolist())])
    )
    assert ceiling.undecided == pytest.approx(1 - len(pairs) / total)


def test_vote_entropy_is_zero_for_agreement_and_maximal_for_equal_votes() -> None:
    entropy = vote_entropy(np.array([[10, 0, 0, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0, 0], [1] * 7]))
    assert entropy == pytest.approx([0, 1, math.log2(7)])
    assert not np.signbit(entropy[0])
