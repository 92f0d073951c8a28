"""The bar that a training has to pass: guessing rarely does, a constant answer never."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import CLASSES
from multistill.metrics.classification import from_confusion
from multistill.metrics.majority import bars, beats
from multistill.typing import IntArray

class_counts = st.lists(st.integers(0, 40), min_size=len(CLASSES), max_size=len(CLASSES)).filter(
    lambda counts: sum(count > 0 for count in counts) >= 2
)


def labels(counts: list[int], ties: int = 0) -> IntArray:
    truth = np.repeat(np.arange(len(CLASSES)), counts)
    return np.concatenate([truth, np.full(ties, -1)]).astype(np.int64)


def scores(truth: IntArray, predicted: IntArray) -> dict[str, float]:
    confusion = np.zeros((len(CLASSES), len(CLASSES)))
    known = truth >= 0
    np.add.at(confusion, (truth[known], predicted[known]), 1)
    return {name: float(value) for name, value in from_confusion(confusion).items()}


@given(class_counts, st.integers(0, len(CLASSES) - 1), st.integers(0, 5))
def test_no_constant_answer_passes(counts: list[int], answer: int, ties: int) -> None:
    truth = labels(counts, ties)
    bar = bars(truth, int(np.argmax(counts)))
    assert bar is not None
    assert not beats(scores(truth, np.full(len(truth), answer)), bar)


@pytest.mark.parametrize(
    "counts",
    [[13] * 7, [40, 30, 8, 8, 20, 3, 2], [200, 200, 0, 0, 0, 0, 0], [30, 0, 6, 0, 6, 0, 0]],
    ids=str,
)
@pytest.mark.parametrize("how", ["uniform", "by frequency", "mostly one class"])
def test_guessing_passes_about_once_in_twenty_times(counts: list[int], how: str) -> None:
    truth = labels(counts)
    bar = bars(truth, int(np.argmax(counts)))
    assert bar is not None
    chance = {
        "uniform": (np.array(counts) > 0).astype(float),
        "by frequency": np.array(counts, float),
        "mostly one class": np.where(np.arange(len(CLASSES)) == 0, 20.0, np.array(counts) > 0),
    }[how]
    rng = np.random.default_rng(0)
    passed = [
        beats(scores(truth, rng.choice(len(CLASSES), len(truth), p=chance / chance.sum())), bar)
        for _ in range(1000)
    ]
    assert np.mean(passed) < 0.09


def test_a_model_that_learnt_passes() -> None:
    truth = labels([13] * 7)
    bar = bars(truth, 0)
    assert bar is not None
    rng = np.random.default_rng(1)
    answers = np.where(rng.random(len(truth)) < 0.4, truth, rng.integers(0, 7, len(truth)))
    assert beats(scores(truth, answers), bar)
    assert not beats({"uar": float("nan"), "macro_f1": float("nan")}, bar)


@pytest.mark.parametrize("truth", [[], [-1, -1], [3, 3, 3, -1]])
def test_fewer_than_two_classes_tell_nothing(truth: list[int]) -> None:
    assert bars(np.array(truth, np.int64), 3) is None
