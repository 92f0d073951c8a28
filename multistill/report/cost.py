"""The picture of UAR against what a prediction costs end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.evaluation.figures import over_seeds
from multistill.report.svg import (
    BASELINE,
    INK,
    MUTED,
    NARROW,
    PAPER,
    ROLE_COLOURS,
    WIDTH,
    styled,
    subplots,
    to_svg,
)

Record = Mapping[str, Any]

COSTS = (
    ("milliseconds", "ms per clip, encoders included (median)", (1.0, 2.0, 5.0)),
    ("params_end_to_end", "parameters, encoders included", (1.0,)),
)
"""Key of a model, title, and where in a decade the axis has ticks."""
TRAINED = ("teacher", "student", "control")
ASIDE = 7.0
"""Points to the right at which a control stands by its student, which costs as much."""


@styled
def accuracy_by_cost(
    models: Sequence[Record], baseline: Record, confidence: float, narrow: bool = False
) -> str | None:
    """UAR with intervals over milliseconds and over parameters; None without a trained model.

    Args:
        models: references and trained models, as in metrics.json; a reference has no latency.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    rows = [_with_milliseconds(model) for model in models]
    panels = [cost for cost in COSTS if sum(bool(row[cost[0]]) for row in rows) > 1]
    if not panels or not any(row["role"] in TRAINED for row in rows):
        return None
    if narrow:
        figure, axes = subplots(NARROW, 3.4 * len(panels), len(panels), 1)
    else:
        figure, axes = subplots(min(WIDTH, 5.2 * len(panels)), 3.6, 1, len(panels), sharey=True)
    for axis, (key, title, ticks) in zip(axes.flat, panels, strict=True):
        for row in rows:
            if row[key]:
                _draw(axis, row, row[key])
        chance = baseline["metrics"]["uar"]["value"]
        if chance is not None:
            axis.axhline(chance, color=BASELINE, linestyle=(0, (3, 3)), linewidth=1, zorder=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=ticks))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15)
        axis.set_ylim(0, 1)
        axis.set_xlabel(title)
        axis.grid(alpha=0.5)
        axis.set_axisbelow(True)
    axes.flat[0].set_ylabel("UAR")
    return to_svg(
        figure,
        "cost-narrow" if narrow else "cost",
        f"UAR of every model with {100 * confidence:.0f} % intervals against its milliseconds and "
        "its parameters end to end; the values are in the table",
    )


def _with_milliseconds(model: Record) -> dict[str, Any]:
    latency = model.get("latency_end_to_end_ms") or {}
    return {**model, "milliseconds": latency.get("p50")}


def _draw(axis: Any, row: Record, cost: float) -> None:
    """A dot with its interval, and the name above it; a control stands unnamed by its student."""
    from matplotlib.transforms import offset_copy

    score = over_seeds(row, "uar")
    if score["value"] is None:
        return
    colour = ROLE_COLOURS.get(row["role"], INK)
    place = axis.transData
    if row["role"] == "control":
        place = offset_copy(place, axis.figure, ASIDE, 0, units="points")
        axis.plot(cost, score["value"], linestyle="none")  # offset points do not widen the axis
    if score["low"] is not None:
        interval = [score["low"], score["high"]]
        axis.plot([cost, cost], interval, color=colour, linewidth=2, transform=place)
    axis.plot(cost, score["value"], "o", color=colour, ms=6.5, mec=PAPER, mew=1.2, transform=place)
    if row["role"] != "control":
        top = score["value"] if score["high"] is None else score["high"]
        axis.annotate(
            row["name"],
            (cost, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=8,
            rotation=55,
            rotation_mode="anchor",
            color=MUTED,
        )
