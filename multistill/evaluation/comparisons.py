"""Whether distillation helped: a student against the same student without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from multistill.metrics.classification import HARD
from multistill.metrics.intervals import interval
from multistill.typing import DoubleArray, IntArray

Verdict = Literal["helped", "did not help", "cannot tell"]
DECIDING = "macro_f1"

WORDS = {
    "accuracy": "accuracy",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
}


@dataclass(frozen=True)
class Scored:
    """One model's metrics on the test set and on every resample of it."""

    values: dict[str, DoubleArray]
    draws: dict[str, DoubleArray]
    predicted: IntArray
    """Predicted class [N]; with several seeds, of the first."""
    seeds: int = 1


def verdict(low: float | None, high: float | None) -> Verdict:
    """`did not help` is claimed only where the whole interval lies at or below zero."""
    if low is None or high is None:
        return "cannot tell"
    if low > 0:
        return "helped"
    return "did not help" if high <= 0 else "cannot tell"


def mcnemar(right: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Exact McNemar test of two models on the same clips.

    It takes clips as independent, which clips of one session are not; the interval by
    session is what the verdict rests on.
    """
    gained, lost = int((right & ~other).sum()), int((~right & other).sum())
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return {"only_first_right": gained, "only_second_right": lost, "p": p}


def compare(
    name: str, first: Scored, against: str, second: Scored, truth: IntArray, confidence: float
) -> dict[str, Any]:
    """Paired differences `name` minus `against` with intervals, a verdict and a sentence.

    Differences are of the means over seeds; `mcnemar` needs single answers: the first seed's.
    """
    differences = {
        metric: interval(
            float(first.values[metric] - second.values[metric]),
            first.draws[metric] - second.draws[metric],
            confidence,
        )
        for metric in HARD
    }
    decided = differences[DECIDING]
    known = truth >= 0
    answer = verdict(decided["low"], decided["high"])
    return {
        "model": name,
        "against": against,
        "metric": DECIDING,
        "verdict": answer,
        "seeds": first.seeds,
        "differences": differences,
        "mcnemar": mcnemar(
            first.predicted[known] == truth[known], second.predicted[known] == truth[known]
        ),
        "sentence": _sentence(name, against, answer, decided, confidence, first.seeds),
    }


def _sentence(
    name: str,
    against: str,
    answer: Verdict,
    difference: dict[str, float | None],
    confidence: float,
    seeds: int,
) -> str:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return f"{name}: cannot tell, the difference to {against} is not defined on this test set."
    opening = {
        "helped": f"{name}: distillation helped",
        "did not help": f"{name}: distillation did not help",
        "cannot tell": f"{name}: cannot tell whether distillation helped",
    }[answer]
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    return (
        f"{opening}; {WORDS[DECIDING]} {value:+.3f} against {against}{mean} "
        f"({100 * confidence:.0f} % interval {low:+.3f} to {high:+.3f})."
    )
