"""Scores of single speakers, a dot each, in a row per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.report.svg import (
    BASELINE,
    INK,
    NARROW,
    ROLE_COLOURS,
    WIDTH,
    dots,
    styled,
    subplots,
    to_svg,
)

Record = Mapping[str, Any]
PANELS = {"uar": "UAR", "accuracy": "accuracy"}


@styled
def over_speakers(baseline: Record, models: Sequence[Record], narrow: bool = False) -> str | None:
    """A dot per speaker, with a line over the middle half and a bar at the median."""
    rows = [{**baseline, "name": f"always {baseline['label']}", "role": "baseline"}, *models]
    rows = [row for row in rows if row["speakers"]]
    if not rows:
        return None
    height = 0.9 + 0.34 * len(rows)
    if narrow:
        figure, axes = subplots(NARROW, 0.5 + height * len(PANELS), len(PANELS), 1)
    else:
        figure, axes = subplots(WIDTH, height, 1, len(PANELS))
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for y, row in enumerate(rows):
            found = row["speakers"][metric]
            colour = BASELINE if row["role"] == "baseline" else ROLE_COLOURS.get(row["role"], INK)
            values = np.array(found["values"])
            # Neighbours in turn above and below the middle, so that equal values can be told.
            places = y + 0.2 * np.resize([-1.0, 0.0, 1.0], len(values))
            axis.plot([found["q1"], found["q3"]], [y, y], color=colour, linewidth=6, alpha=0.3)
            dots(axis, values, places, colour)
            axis.plot([found["median"]] * 2, [y - 0.36, y + 0.36], color=colour, linewidth=2)
        axis.set_title(f"{title}, each speaker")
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.7)
        axis.set_axisbelow(True)
        first = narrow or axis is axes.flat[0]
        axis.set_yticks(range(len(rows)), [str(row["name"]) for row in rows] if first else [])
    return to_svg(
        figure,
        "speakers-narrow" if narrow else "speakers",
        "UAR and accuracy of every speaker, a dot each, with quartiles and median; the quartiles "
        "are in the table",
    )
