"""The weight of the teacher's losses over training."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["fixed", "rise", "fall"]


def scheduled_weight(
    weight: float, schedule: Schedule, progress: float, share: float = 0.2
) -> float:
    """Weight after the share `progress` (0 to 1) of all training steps.

        fixed   weight
        rise    weight * min(1, progress / share)          (DKD's warm-up, Zhao et al. 2022)
        fall    weight * min(1, (1 - progress) / share)    (the last steps use labels only)

    Args:
        share: duration of the change as a share of the training, above 0.
    """
    if schedule == "fixed":
        return weight
    if schedule == "rise":
        return weight * min(1.0, progress / share)
    if schedule == "fall":
        return weight * min(1.0, max(0.0, 1.0 - progress) / share)
    raise ValueError(f"unknown schedule `{schedule}`")
