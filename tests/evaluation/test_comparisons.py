"""Paired comparisons of a student with its control: verdicts, seeds and paired resamples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.predictions import sessions_of
from helpers.simulated_test_sets import verdicts

from multistill.evaluation.comparisons import Scores, compare, difference, judge_family, verdict
from multistill.metrics.classification import HARD, SufficientStatistics
from multistill.metrics.intervals import Resampling

SESSIONS = 12
SIZE = 420


def scores(*correct: np.ndarray) -> Scores:
    """Scores of trainings whose predictions are correct where `correct` is True."""
    truth = np.arange(SIZE) % 7
    statistics = SufficientStatistics(7)
    resampling = Resampling(sessions_of([SIZE // SESSIONS] * SESSIONS), 300, seed=8)
    uniform = np.full((SIZE, 7), 1 / 7)
    values, draws, predicted = [], [], truth
    for training in correct:
        predicted = np.where(training, truth, (truth + 1) % 7)
        rows = statistics.rows_of(truth, predicted, uniform, uniform)
        values.append(statistics.measure(rows.sum(axis=0)))
        draws.append(statistics.measure(resampling.sums(rows)))
    return Scores(
        {m: np.mean([v[m] for v in values], axis=0) for m in HARD},
        {m: np.mean([d[m] for d in draws], axis=0) for m in HARD},
        predicted,
        {m: np.array([v[m] for v in values]) for m in HARD} if len(correct) > 1 else {},
    )


def compared(
    first: Scores, second: Scores, not_trained: dict[str, str] | None = None
) -> dict[str, Any]:
    truth = np.arange(SIZE) % 7
    return compare("student", first, "control", second, truth, SESSIONS, 0.95, not_trained or {})


def test_a_better_student_was_helped_and_a_worse_one_was_not() -> None:
    rng = np.random.default_rng(7)
    first = scores(*(rng.random((3, SIZE)) < 0.8))
    second = scores(*(rng.random((3, SIZE)) < 0.5))
    comparison = compared(first, second)
    assert comparison["verdict"] == "helped"
    assert "distillation helped" in comparison["sentence"]
    assert "means of 3 seeds" in comparison["sentence"]
    reverse = compared(second, first)
    assert reverse["verdict"] == "did not help"
    value = comparison["differences"]["macro_f1"]["value"]
    assert reverse["differences"]["macro_f1"]["value"] == pytest.approx(-value)
    assert comparison["mcnemar"]["p"] < 0.01


@pytest.mark.parametrize("seeds", [(1, 1), (1, 3), (3, 1)])
def test_one_training_of_either_cannot_judge_distillation(seeds: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    first = scores(*(rng.random((seeds[0], SIZE)) < 0.9))
    second = scores(*(rng.random((seeds[1], SIZE)) < 0.3))
    comparison = compared(first, second)
    assert comparison["verdict"] == "cannot tell"
    assert comparison["differences"]["macro_f1"]["low"] > 0
    assert "one training" in comparison["sentence"] and "`seeds: 3`" in comparison["sentence"]


def test_the_variance_of_a_difference_has_a_part_for_each_models_seeds() -> None:
    rng = np.random.default_rng(11)
    steady = scores(*[rng.random(SIZE) < 0.6] * 4)
    scattered = scores(*(rng.random(SIZE) < chance for chance in (0.4, 0.5, 0.7, 0.8)))

    def width(first: Scores, second: Scores) -> float:
        result = difference("macro_f1", first, second, SESSIONS, 0.95)
        return result["high"] - result["low"]

    assert width(scattered, steady) > 3 * width(steady, steady)
    assert width(steady, scattered) == pytest.approx(width(scattered, steady))


def test_a_metric_without_interval_gives_no_verdict() -> None:
    """A class is too rare: the resampled values of macro F1 are not defined."""
    rng = np.random.default_rng(7)
    first, second = (scores(*(rng.random((2, SIZE)) < chance)) for chance in (0.8, 0.5))
    undefined = [
        replace(s, draws={**s.draws, "macro_f1": np.full(300, np.nan)}) for s in (first, second)
    ]
    comparison = compared(*undefined)
    assert comparison["verdict"] == "cannot tell"
    assert "has no interval" in comparison["sentence"]
    assert comparison["differences"]["accuracy"]["low"] is not None


def test_an_interval_around_zero_gives_no_verdict() -> None:
    assert verdict(-0.01, 0.2) == "cannot tell"
    assert verdict(None, None) == "cannot tell"
    assert verdict(-0.2, 0.0) == verdict(0.0, 0.2) == "cannot tell"
    assert verdict(-0.2, -0.1) == "did not help"


@pytest.mark.parametrize("shift", [0.0, -0.01, 0.01])
def test_a_difference_that_never_varies_gives_no_verdict(shift: float) -> None:
    first = scores(*[np.random.default_rng(7).random(SIZE) < 0.6] * 3)
    moved = {
        name: {metric: value + shift for metric, value in getattr(first, name).items()}
        for name in ("values", "draws", "per_seed")
    }
    comparison = compared(replace(first, **moved), first)
    assert comparison["differences"]["macro_f1"]["low"] == pytest.approx(shift)
    assert comparison["verdict"] == "cannot tell"
    assert "cannot tell whether distillation helped" in comparison["sentence"]
    assert "nothing is known of the variance" in comparison["sentence"]


def barely_better() -> dict[str, Any]:
    """A comparison whose p is below 0.05, and above a third of it."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        comparison = compared(
            scores(*(rng.random((3, SIZE)) < 0.6)), scores(*(rng.random((3, SIZE)) < 0.5))
        )
        if 0.02 < comparison["differences"]["macro_f1"]["p"] < 0.05:
            return comparison
    raise AssertionError("no such comparison")


def test_the_p_value_and_the_interval_of_one_comparison_say_the_same() -> None:
    rng = np.random.default_rng(7)
    for chance in (0.5, 0.55, 0.6, 0.65, 0.7):
        comparison = compared(
            scores(*(rng.random((2, SIZE)) < chance)), scores(*(rng.random((2, SIZE)) < 0.5))
        )
        for found in comparison["differences"].values():
            assert (found["p"] < 0.05) is (found["low"] > 0 or found["high"] < 0)
            assert found["p_holm"] == found["p"]


def test_what_one_comparison_shows_a_family_of_three_does_not() -> None:
    alone = barely_better()
    assert alone["verdict"] == "helped"
    family = judge_family([alone, alone, alone], 0.95)
    for each in family:
        assert each["verdict"] == "cannot tell"
        assert "by Holm over 3" in each["sentence"]
        assert each["differences"]["macro_f1"]["p_holm"] == pytest.approx(
            3 * alone["differences"]["macro_f1"]["p"]
        )
        assert each["differences"]["macro_f1"]["low"] > 0, "intervals are of each alone"
    assert judge_family([alone], 0.95) == [alone]


def test_a_clear_difference_is_shown_beside_any_number_of_others() -> None:
    rng = np.random.default_rng(7)
    clear = compared(scores(*(rng.random((3, SIZE)) < 0.9)), scores(*(rng.random((3, SIZE)) < 0.3)))
    family = judge_family([barely_better(), clear, barely_better()], 0.95)
    assert [each["verdict"] for each in family] == ["cannot tell", "helped", "cannot tell"]


def test_what_learnt_nothing_is_in_no_family() -> None:
    rng = np.random.default_rng(7)
    better, worse = scores(*(rng.random((3, SIZE)) < 0.8)), scores(*(rng.random((3, SIZE)) < 0.2))
    untrained = compared(better, worse, {"control": "not trained: raise the rate"})
    alone = barely_better()
    family = judge_family([untrained, alone, untrained], 0.95)
    assert [each["verdict"] for each in family] == ["not trained", "helped", "not trained"]
    assert family[1]["sentence"] == alone["sentence"]


def test_paired_differences_vary_less_than_unpaired_ones() -> None:
    """Two models that are correct on almost the same clips differ little in every resample."""
    correct = np.random.default_rng(9).random(SIZE) < 0.6
    almost = correct.copy()
    almost[::60] = ~almost[::60]
    first, second = scores(correct), scores(almost)
    paired = (first.draws["uar"] - second.draws["uar"]).std()
    assert paired < first.draws["uar"].std() / 2


@pytest.mark.parametrize("untrained", ["student", "control"])
def test_nothing_is_said_about_distillation_where_a_training_learnt_nothing(
    untrained: str,
) -> None:
    rng = np.random.default_rng(7)
    better, worse = scores(*(rng.random((3, SIZE)) < 0.8)), scores(*(rng.random((3, SIZE)) < 0.2))
    comparison = compared(better, worse, {untrained: "not trained: raise the rate"})
    assert comparison["verdict"] == "not trained"
    assert "not trained: raise the rate" in comparison["sentence"]
    assert "helped" not in comparison["sentence"] and untrained in comparison["sentence"]
    assert compared(better, worse, {"teacher": "not trained"})["verdict"] == "helped"


@pytest.mark.parametrize(
    ("sessions", "clips", "seeds"),
    [(3, 300, 2), (3, 300, 5), (12, 36, 2), (12, 36, 3), (40, 60, 3)],
)
def test_models_that_differ_by_seed_alone_rarely_get_a_verdict(
    sessions: int, clips: int, seeds: int
) -> None:
    """Nominal 2.5 % a side; 160 simulations have a standard error of 1.2 %."""
    counted = Counter(verdicts(sessions, clips, seeds, 160, seed=seeds))
    assert counted["helped"] <= 0.06 * 160, counted
    assert counted["did not help"] <= 0.06 * 160, counted


def test_a_large_effect_is_found() -> None:
    counted = Counter(verdicts(12, 100, 5, 40, gain=1.5))
    assert counted["helped"] >= 0.9 * 40, counted
