"""The best epoch: a mean over a window, then the loss, then the earlier one."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.training.selection import epoch_score, recent_mean

VALIDATION_CLIPS = 30


def chosen(metric: list[float], loss: list[float], window: int, name: str = "macro_f1") -> int:
    """The epoch (1 for the first) that a training keeps."""
    history: list[dict[str, float]] = []
    best, best_epoch = [-np.inf], 0
    for epoch, (value, epoch_loss) in enumerate(zip(metric, loss, strict=True), start=1):
        history.append({f"valid_{name}": value, "valid_loss": epoch_loss})
        score = epoch_score(history, name, window)
        if score > best:
            best, best_epoch = score, epoch
    return best_epoch


curves = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=20)


@given(curves, st.integers(1, 25))
def test_the_chosen_epoch_has_the_highest_mean_and_is_the_first_of_equals(
    curve: list[float], window: int
) -> None:
    means = [fmean(curve[max(0, end - window) : end]) for end in range(1, len(curve) + 1)]
    assert chosen(curve, [1.0] * len(curve), window) == int(np.argmax(means)) + 1


@given(curves)
def test_a_window_of_one_is_the_epoch_itself(curve: list[float]) -> None:
    assert chosen(curve, [1.0] * len(curve), 1) == int(np.argmax(curve)) + 1
    assert chosen([0.5] * len(curve), curve, 1) == int(np.argmin(curve)) + 1, "ties: the loss"
    assert chosen([0.5] * len(curve), curve, 1, "loss") == int(np.argmin(curve)) + 1


def test_a_lucky_epoch_loses_against_a_steady_part() -> None:
    curve = [0.2, 0.9, 0.2, 0.7, 0.8, 0.7]
    assert chosen(curve, [1.0] * 6, 1) == 2
    assert chosen(curve, [1.0] * 6, 3) == 6


def test_the_mean_of_fewer_values_than_the_window_is_that_of_all() -> None:
    assert recent_mean([1.0, 2.0], 5) == 1.5
    assert recent_mean([1.0, 2.0, 4.0], 2) == 3.0


def test_without_validation_the_newest_epoch_is_the_best() -> None:
    assert epoch_score([{"train_loss": 1.0}] * 3, "macro_f1", 5) == [3.0]


def simulated(shape: str, rng: np.random.Generator, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """True accuracies of the epochs, and those on 30 validation clips."""
    time = np.arange(1, epochs + 1) / epochs
    true = 0.2 + 0.5 * (1 - np.exp(-6 * time))
    if shape == "overfits":
        true -= 0.3 * np.clip(time - 0.5, 0, None)
    true = true + rng.normal(scale=0.02, size=epochs)
    return true, rng.binomial(VALIDATION_CLIPS, true) / VALIDATION_CLIPS


@pytest.mark.parametrize("shape", ["rises", "overfits"])
def test_a_window_chooses_better_epochs_of_noisy_curves_than_the_highest_value(shape: str) -> None:
    """400 curves of 40 epochs, whose noise is that of 30 validation clips."""
    rng = np.random.default_rng(0)
    curves = [simulated(shape, rng, 40) for _ in range(400)]

    def mean_true_score(window: int) -> float:
        return fmean(
            true[chosen(seen.tolist(), [1.0] * len(seen), window) - 1] for true, seen in curves
        )

    figures = {window: mean_true_score(window) for window in (1, 3, 5)}
    assert figures[3] > figures[1]
    assert figures[5] > figures[1]
