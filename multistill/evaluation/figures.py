"""Figures of one model in metrics.json, and their names, as all tables and records show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRIMARY_METRIC = "macro_f1"
"""The metric whose interval decides the verdict."""
METRIC_TITLES = {
    "accuracy": "accuracy",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "ccc": "CCC",
}
PRIMARY_DIMENSION_METRIC = "ccc"
"""The same of predicted dimensions."""
DIMENSION_TITLES = {"ccc": "CCC", "pearson": "Pearson", "rmse": "RMSE"}


def over_seeds(model: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """A metric of a model: the mean over its seeds with `sd`, where it has several.

    Metrics that are not measured for every seed (calibration, distances to the votes) are those
    of the first.
    """
    seeds: Mapping[str, Any] = model.get("seeds") or {}
    found: Mapping[str, Any] = seeds.get("metrics", {}).get(metric) or model["metrics"][metric]
    return found


def single_numbers(model: Mapping[str, Any]) -> dict[str, float | None]:
    """All metrics of a model (`over_seeds`), and `<metric>_sd` where it has several seeds."""
    values: dict[str, float | None] = {}
    for name in model["metrics"]:
        score = over_seeds(model, name)
        values[name] = score["value"]
        if "sd" in score:
            values[f"{name}_sd"] = score["sd"]
    return values
