"""Learning rate and random state as functions of the step and epoch: nothing to checkpoint."""

from __future__ import annotations

import math

import numpy as np


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to zero.

    Args:
        step: 0-based optimiser step.
        total: steps of the whole training.
        warmup: share of `total` spent rising.

    Examples:
        >>> [round(learning_rate(step, total=10, peak=1.0, warmup=0.2), 2) for step in range(5)]
        [0.5, 1.0, 1.0, 0.96, 0.85]
    """
    rising = math.ceil(total * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all parts, so that (seed, epoch, rank) never collide."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
