"""Whether distillation helped: a student compared with the same student without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from multistill.metrics.classification import HARD
from multistill.metrics.intervals import interval
from multistill.typing import DoubleArray, IntArray

Verdict = Literal["helped", "did not help", "cannot tell", "not trained"]
PRIMARY_METRIC = "macro_f1"
"""The metric whose interval decides the verdict."""

METRIC_TITLES = {
    "accuracy": "accuracy",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
}


@dataclass(frozen=True)
class Scores:
    """One model's metrics on the test set and on every resample of it."""

    values: dict[str, DoubleArray]
    draws: dict[str, DoubleArray]
    """Per metric, the value on each resample [resamples]."""
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


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> dict[str, Any]:
    """Exact McNemar test of two models on the same clips.

    The test assumes independent clips, which clips of one session are not; the verdict uses
    the interval by session instead.
    """
    gained = int((first_correct & ~second_correct).sum())
    lost = int((~first_correct & second_correct).sum())
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return {"only_first_right": gained, "only_second_right": lost, "p": p}


def compare(
    name: str,
    first: Scores,
    against: str,
    second: Scores,
    truth: IntArray,
    confidence: float,
    not_trained: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Paired differences `name` minus `against` with intervals, a verdict and a sentence.

    The differences are between means over seeds. `mcnemar` needs one prediction per clip and
    uses the first seed's.

    Args:
        not_trained: model -> why it learnt nothing. A student or a control that learnt nothing
            says nothing about distillation, whatever the difference.
    """
    differences = {
        metric: interval(
            float(first.values[metric] - second.values[metric]),
            first.draws[metric] - second.draws[metric],
            confidence,
        )
        for metric in HARD
    }
    primary = differences[PRIMARY_METRIC]
    labelled = truth >= 0
    untrained = next((model for model in (name, against) if model in not_trained), None)
    if untrained is None:
        decision = verdict(primary["low"], primary["high"])
        sentence = _sentence(name, against, decision, primary, confidence, first.seeds)
    else:
        decision = "not trained"
        of_control = "" if untrained == name else f"no verdict, its control {untrained} is "
        sentence = f"{name}: {of_control}{not_trained[untrained]}."
    return {
        "model": name,
        "against": against,
        "metric": PRIMARY_METRIC,
        "verdict": decision,
        "seeds": first.seeds,
        "differences": differences,
        "mcnemar": mcnemar(
            first.predicted[labelled] == truth[labelled],
            second.predicted[labelled] == truth[labelled],
        ),
        "sentence": sentence,
    }


def _sentence(
    name: str,
    against: str,
    decision: Verdict,
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
    }.get(decision, name)
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    return (
        f"{opening}; {METRIC_TITLES[PRIMARY_METRIC]} {value:+.3f} against {against}{mean} "
        f"({100 * confidence:.0f} % interval {low:+.3f} to {high:+.3f})."
    )
