"""Time of one answer, batch 1, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

WARM_UP = 3

T = TypeVar("T")


def percentiles(milliseconds: Iterable[float]) -> dict[str, float]:
    """p50 and p95."""
    p50, p95 = np.percentile(list(milliseconds), [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def time_each(answer: Callable[[T], object], items: list[T], device: torch.device) -> list[float]:
    """Milliseconds of `answer(item)` for each item, after `WARM_UP` untimed calls.

    A GPU works behind the caller's back, so it is waited for before and after each call.
    """

    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    found = []
    with torch.inference_mode():
        for item in items[:WARM_UP]:
            answer(item)
        for item in items:
            start = settled()
            answer(item)
            found.append(1000 * (settled() - start))
    return found
