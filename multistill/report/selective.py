"""Risk against coverage, a panel per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.report.plots import grid_shape
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


@styled
def risk_over_coverage(models: Sequence[Record], narrow: bool = False) -> str | None:
    """The curve of each model, and coverage and risk of its threshold as a dot with intervals."""
    shown = [model for model in models if model["role"] != "control" and model["selective"]]
    if not shown:
        return None
    rows, columns = grid_shape(len(shown), narrow)
    width = NARROW / 2 if narrow else WIDTH / 4
    figure, axes = subplots(width * columns, 2.3 * rows, rows, columns, sharex=True, sharey=True)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    highest = max(max(model["selective"]["curve"]["risk"]) for model in shown)
    for axis, model in zip(axes.flat, shown, strict=False):
        found, colour = model["selective"], ROLE_COLOURS.get(model["role"], INK)
        axis.axhline(found["random"], color=BASELINE, linewidth=1, linestyle=(0, (3, 3)))
        axis.plot(found["curve"]["coverage"], found["curve"]["risk"], color=colour)
        if found["threshold"] and found["threshold"]["accuracy"]["value"] is not None:
            _draw_threshold(axis, found["threshold"])
        axis.set_title(str(model["name"]), fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, min(1.0, 1.1 * highest + 0.02))
        axis.set_xticks([0, 0.5, 1])
        axis.grid(axis="y", alpha=0.7)
        axis.set_axisbelow(True)
    for axis in axes[-1]:
        axis.set_xlabel("coverage")
    for row in axes:
        row[0].set_ylabel("risk")
    return to_svg(
        figure,
        "selective-narrow" if narrow else "selective",
        "share of wrong predictions against the share that is kept, of each model; areas and "
        "thresholds are in the table",
    )


def _draw_threshold(axis: Any, threshold: Record) -> None:
    coverage, accuracy = threshold["coverage"], threshold["accuracy"]
    x, y = coverage["value"], 1 - accuracy["value"]
    if coverage["low"] is not None:
        axis.plot([coverage["low"], coverage["high"]], [y, y], color=MUTED, linewidth=1)
    if accuracy["low"] is not None:
        ends = 1 - np.array([accuracy["low"], accuracy["high"]])
        axis.plot([x, x], ends, color=MUTED, linewidth=1)
    axis.plot(x, y, "o", color=INK, markersize=6, markeredgecolor=PAPER, markeredgewidth=1)
