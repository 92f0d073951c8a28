"""Learning rate and seeds as functions of step and epoch, so that no state is checkpointed."""

from __future__ import annotations

import math

import numpy as np


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine decay to zero.

    Args:
        step: 0-based optimizer step.
        total: number of steps of the whole training.
        warmup: share of `total` during which the rate rises.

    Examples:
        >>> [round(learning_rate(step, total=10, peak=1.0, warmup=0.2), 2) for step in range(5)]
        [0.5, 1.0, 1.0, 0.96, 0.85]
    """
    warmup_steps = math.ceil(total * warmup)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from all parts, so that different (seed, step, rank) do not collide."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
