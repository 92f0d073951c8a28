"""Epochs that a search spends, with the trials that ASHA stops."""

from __future__ import annotations

import math
import random
from bisect import insort

from multistill.forecast.spread import Spread

REPETITIONS = 200
LOW, HIGH = 0.1, 0.9


def epochs_of_search(trials: int, epochs: int, grace: int, reduction: int) -> Spread:
    """Epochs of all trials together, of ASHA on results in random order.

    A trial that reaches a rung stops there unless its result is among the best 1/`reduction` of
    those that reached it so far (Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning", section 3.2; Ray Tune stops trials where the paper pauses them). Random order is the
    assumption: where settings hardly matter or a sampler improves steadily, more trials go on.

    Args:
        epochs: budget of a trial; grace: epochs before the first rung.

    Returns:
        the mean, and the 10th and 90th percentile; the same in every process.
    """
    if grace >= epochs:
        total = float(trials * epochs)
        return Spread(total, total, total)
    # A generator for each: more trials then are the same ones and others, which take longer.
    totals = sorted(
        _simulate(trials, epochs, grace, reduction, random.Random(seed))  # noqa: S311
        for seed in range(REPETITIONS)
    )
    mean = sum(totals) / len(totals)
    low, high = totals[int(LOW * len(totals))], totals[int(HIGH * len(totals))]
    return Spread(min(low, mean), mean, max(high, mean))


def _simulate(
    trials: int, epochs: int, grace: int, reduction: int, generator: random.Random
) -> float:
    rungs: list[tuple[int, list[float]]] = []
    at = grace
    while at < epochs:
        rungs.append((at, []))
        at *= reduction
    spent = 0
    for _ in range(trials):
        stopped = epochs
        result = generator.random()
        for epoch, results in rungs:
            cutoff = _cutoff(results, reduction)
            insort(results, result)  # sorting a rung for every result of it is quadratic
            if cutoff is not None and result < cutoff:
                stopped = epoch
                break
        spent += stopped
    return float(spent)


def _cutoff(ordered: list[float], reduction: int) -> float | None:
    """The result that divides the best 1/`reduction` from the rest; None before there is one."""
    if not ordered:
        return None
    place = (1 - 1 / reduction) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
