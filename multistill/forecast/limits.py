"""What of a forecast is beyond what the job allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.config.resources import AllowConfig

GB = 1e9


def beyond(allow: AllowConfig, forecast: Mapping[str, Any] | None) -> Sequence[str]:
    """What exceeds a limit, or cannot be said, each as a phrase; empty without limits.

    Args:
        forecast: of `describe`; None where there is none at all.
    """
    limits = {name: value for name, value in allow.model_dump().items() if value is not None}
    if not limits:
        return []
    if forecast is None:
        return ["nothing is measured, so there is no forecast to hold against `resources.allow`"]
    found = []
    for name, limit in limits.items():
        spread = forecast["total"].get(name)
        if spread is not None and spread["value"] > limit:
            found.append(
                f"{TITLES[name]} {spread['value']:.3g} ({spread['low']:.3g} to "
                f"{spread['high']:.3g}) where resources.allow.{name} is {limit:g}"
            )
        elif spread is None:
            found.append(f"no price to hold resources.allow.{name} against")
    if forecast["missing"]:
        found.append(f"not known: {'; '.join(forecast['missing'])}")
    return found


TITLES = {"hours": "hours", "gpu_hours": "GPU-hours", "cost": "cost", "disk_gb": "GB of disk"}
