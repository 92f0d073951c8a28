"""Valence, arousal and dominance as lines of the terminal table and rows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multistill.evaluation.figures import (
    DIMENSION_TITLES,
    PRIMARY_DIMENSION_METRIC,
    over_seeds,
)
from multistill.wording import counted


def dimension_lines(dimensions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For every dimension a line with the CCC of all models, then the verdicts on distillation.

    Args:
        dimensions: of report.json.
    """
    for entry in dimensions:
        models = ", ".join(
            f"{model['name']} {_figure(over_seeds(model, PRIMARY_DIMENSION_METRIC))}"
            for model in (*entry["references"], *entry["models"])
        )
        clips = counted(entry["clips"], "clip")
        title = DIMENSION_TITLES[PRIMARY_DIMENSION_METRIC]
        yield f"{entry['dimension']} {title} on {clips}: {models}"
        yield from (comparison["sentence"] for comparison in entry["distillation"])


def dimension_rows(dimensions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the page's table: of every dimension the baseline, the probes and the models.

    Returns:
        `dimension`, `model` (its entry; of the baseline without `role`), `metrics` over seeds by
        name, and `gain`: the difference of the CCC to the control, None where there is none.
    """
    rows = []
    for entry in dimensions:
        gains = {
            each["model"]: each["differences"][PRIMARY_DIMENSION_METRIC]
            for each in entry["distillation"]
        }
        for model in (entry["baseline"], *entry["references"], *entry["models"]):
            rows.append(
                {
                    "dimension": entry["dimension"],
                    "model": model,
                    "metrics": {metric: over_seeds(model, metric) for metric in DIMENSION_TITLES},
                    "gain": gains.get(model["name"]),
                }
            )
    return rows


def _figure(metric: Mapping[str, float | None]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
