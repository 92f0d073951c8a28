"""Whether distillation helped: a student compared with the same student without a teacher.

Two trainings of one model differ by their seed alone, often by more than distillation changes. A
statement about distillation therefore needs several trainings of both, and the variance of the
difference has three parts: of test sets (groups of utterances, resampled for both models at once)
and of training each model, s^2 / n over its n seeds. Their degrees of freedom are combined as by
Satterthwaite (1946), as in Welch's t test. The variance over seeds is measured on one test set and
so holds the interaction of seeds with sessions once more, which errs on the wide side.

A job makes several comparisons. Their verdicts are those of one family: p-values are adjusted as by
Holm (`multistill.metrics.multiple_tests`), and the adjusted one decides. Intervals are of each
comparison alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from multistill.evaluation.figures import METRIC_TITLES, PRIMARY_METRIC
from multistill.metrics.classification import HARD
from multistill.metrics.intervals import (
    p_value,
    sampling_variance,
    satterthwaite,
    t_interval,
)
from multistill.metrics.multiple_tests import holm
from multistill.typing import DoubleArray, IntArray

Verdict = Literal["helped", "did not help", "cannot tell", "not trained"]
Side = Literal["above", "below", "both", "no interval"]
ROUNDING = 1e-9
"""Differences below it are of floating-point numbers, not of models."""


@dataclass(frozen=True)
class Scores:
    """One model's metrics on the test set and on every resample of it.

    Attributes:
        values: means over the seeds.
        draws: per metric, the mean over the seeds on each resample [resamples].
        predicted: class [N]; with several seeds, of the first.
        per_seed: per metric, the value of every seed [seeds]; empty for a single training.
    """

    values: Mapping[str, DoubleArray]
    draws: Mapping[str, DoubleArray]
    predicted: IntArray
    per_seed: Mapping[str, DoubleArray] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        return len(next(iter(self.per_seed.values()), (None,)))


def side_of_zero(low: float | None, high: float | None) -> Side:
    """Where the interval of a difference lies.

    An interval of a single point is of models that answer alike, or whose seeds and groups happen
    to agree: such a sample says nothing about how much others would vary, and counts as none.
    """
    if low is None or high is None or high - low < ROUNDING:
        return "no interval"
    if low > 0:
        return "above"
    return "below" if high < 0 else "both"


def verdict(low: float | None, high: float | None) -> Verdict:
    """A claim needs an interval on one side of zero, and some variance that it rests on."""
    verdicts: Mapping[Side, Verdict] = {"above": "helped", "below": "did not help"}
    return verdicts.get(side_of_zero(low, high), "cannot tell")


def is_shown(difference: Mapping[str, float | None], confidence: float) -> bool:
    """Whether a difference is not zero, by the p-value adjusted for its family."""
    adjusted = difference["p_holm"]
    return adjusted is not None and adjusted < 1 - confidence


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> dict[str, Any]:
    """Exact McNemar test of two models on the same clips.

    The test assumes independent clips, which clips of one session are not; the verdict uses
    the interval of `difference` instead.
    """
    gained = int((first_correct & ~second_correct).sum())
    lost = int((~first_correct & second_correct).sum())
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return {"only_first_right": gained, "only_second_right": lost, "p": p}


def difference(
    metric: str, first: Scores, second: Scores, clusters: int, confidence: float
) -> dict[str, float | None]:
    """`first` minus `second` with the interval that the module's docstring describes, and its `p`.

    With one training of a model, its part of the variance is missing: the interval is then of
    these two models, not of their kinds.

    Args:
        clusters: number of groups that were resampled.
    """
    variances = [sampling_variance(first.draws[metric] - second.draws[metric], clusters)]
    degrees = [clusters - 1]
    for scores in (first, second):
        if scores.seeds > 1:
            values = scores.per_seed[metric]
            variances.append(float(np.var(values, ddof=1)) / len(values))
            degrees.append(len(values) - 1)
    value = float(first.values[metric] - second.values[metric])
    variance, freedom = sum(variances), satterthwaite(variances, degrees)
    found = t_interval(value, variance, freedom, confidence)
    certain = side_of_zero(found["low"], found["high"]) == "no interval"
    return found | {"p": None if certain else p_value(value, variance, freedom)}


def adjust(
    family: Sequence[Mapping[str, Mapping[str, float | None]]],
) -> list[dict[str, dict[str, float | None]]]:
    """Differences by metric of every test of a family, with `p_holm` beside `p`.

    Each metric is a family of its own: one of them decides, the others describe.
    """
    adjusted: list[dict[str, dict[str, float | None]]] = [{} for _ in family]
    for metric in family[0] if family else ():
        p_values = holm([each[metric].get("p") for each in family])
        for found, each, p in zip(adjusted, family, p_values, strict=True):
            found[metric] = {**each[metric], "p_holm": p}
    return adjusted


def compare(
    name: str,
    first: Scores,
    against: str,
    second: Scores,
    truth: IntArray,
    clusters: int,
    confidence: float,
    not_trained: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Paired differences `name` minus `against` with intervals, a verdict and a sentence.

    The verdict is that of one comparison alone: `judge_family` judges several.

    The differences are between means over seeds; with one seed of either, the verdict is
    `cannot tell`. `mcnemar` needs one prediction per clip and uses the first seed's.

    Args:
        truth: class index [N], -1 where the votes tie.
        clusters: number of groups that were resampled.
        not_trained: model -> why it learnt nothing. A student or a control that learnt nothing
            says nothing about distillation, whatever the difference.
    """
    labelled = truth >= 0
    comparison = paired(
        name, first, against, second, clusters, confidence, HARD, PRIMARY_METRIC, not_trained
    )
    correct = [each.predicted[labelled] == truth[labelled] for each in (first, second)]
    return comparison | {"mcnemar": mcnemar(*correct)}


def paired(
    name: str,
    first: Scores,
    against: str,
    second: Scores,
    clusters: int,
    confidence: float,
    metrics: Sequence[str],
    primary: str,
    not_trained: Mapping[str, str] = MappingProxyType({}),
    of: str = "",
) -> dict[str, Any]:
    """`compare` for any metrics: `primary` decides, `of` says of what it is (`valence`)."""
    differences = {
        metric: difference(metric, first, second, clusters, confidence) for metric in metrics
    }
    comparison: dict[str, Any] = {
        "model": name,
        "against": against,
        "metric": primary,
        "title": f"{of} {METRIC_TITLES[primary]}".strip(),
        "verdict": "not trained",
        "seeds": min(first.seeds, second.seeds),
        "differences": differences,
        "family": 1,
        "sentence": "",
    }
    untrained = next((model for model in (name, against) if model in not_trained), None)
    if untrained is None:
        return _judged(comparison | {"differences": adjust([differences])[0]}, confidence)
    of_control = "" if untrained == name else f"no verdict, its control {untrained} is "
    none = {metric: {**found, "p_holm": None} for metric, found in differences.items()}
    sentence = f"{name}: {of_control}{not_trained[untrained]}."
    return comparison | {"differences": none, "sentence": sentence}


def judge_family(comparisons: Sequence[dict[str, Any]], confidence: float) -> list[dict[str, Any]]:
    """The comparisons with verdicts and sentences by p-values adjusted for all of them.

    Models that learnt nothing are in no family: nothing is tested with them.
    """
    tested = [each for each in comparisons if each["verdict"] != "not trained"]
    adjusted = iter(adjust([each["differences"] for each in tested]))
    family = sum(each["differences"][each["metric"]]["p"] is not None for each in tested)
    return [
        each
        if each["verdict"] == "not trained"
        else _judged(each | {"differences": next(adjusted), "family": max(family, 1)}, confidence)
        for each in comparisons
    ]


def _judged(comparison: dict[str, Any], confidence: float) -> dict[str, Any]:
    """The comparison with the verdict and the sentence of its adjusted differences."""
    primary, seeds = comparison["differences"][comparison["metric"]], comparison["seeds"]
    decision: Verdict = "cannot tell"
    if seeds > 1 and is_shown(primary, confidence):
        decision = verdict(primary["low"], primary["high"])
    sentence = describe_difference(
        comparison["model"],
        comparison["against"],
        decision,
        primary,
        confidence,
        seeds,
        comparison["family"],
        comparison["title"],
    )
    return comparison | {"verdict": decision, "sentence": sentence}


def describe_difference(
    name: str,
    against: str,
    decision: Verdict,
    difference: Mapping[str, float | None],
    confidence: float,
    seeds: int,
    family: int,
    title: str,
) -> str:
    """A verdict with its difference as a sentence.

    Args:
        family: number of comparisons that the p-value is adjusted for.
        title: of the metric.
    """
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if value is None:
        return f"{name}: cannot tell, the difference to {against} is not defined on this test set."
    if low is None or high is None:
        return (
            f"{name}: cannot tell, {title} {value:+.3f} against {against} "
            "has no interval on this test set."
        )
    if high - low < ROUNDING:
        same = abs(value) < ROUNDING
        alike = "answers like" if same else "differs by the same in every seed and group from"
        return (
            f"{name}: cannot tell whether distillation helped; it {alike} {against} "
            f"({title} {value:+.3f}), so nothing is known of the variance."
        )
    measured = f"{title} {value:+.3f} against {against}"
    interval = f"({100 * confidence:.0f} % interval {low:+.3f} to {high:+.3f})"
    if seeds < 2:
        return (
            f"{name}: cannot tell whether distillation helped from one training each; as two "
            f"models, {measured} {interval}; set `seeds: 3` or more for a verdict."
        )
    opening = {
        "helped": f"{name}: distillation helped",
        "did not help": f"{name}: distillation did not help",
        "cannot tell": f"{name}: cannot tell whether distillation helped",
    }.get(decision, name)
    if family > 1 and difference["p_holm"] is not None:
        interval = f"{interval[:-1]}; p {difference['p_holm']:.3f} by Holm over {family})"
    return f"{opening}; {measured}, means of {seeds} seeds {interval}."
