"""The protocol in words, and the folds of a cross-validation as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.config import JobConfig
from multistill.report.plots import NARROW, PANELS, WIDTH
from multistill.report.svg import BASELINE, INK, ROLE_COLOURS, dots, styled, subplots, to_svg

Record = Mapping[str, Any]


def describe_protocol(job: JobConfig, folds: Sequence[Record]) -> dict[str, Any]:
    """`kind`, `by`, `folds` (as in metrics.json), `short` for tables and `sentence`."""
    protocol, split = job.protocol, job.split
    if not folds:
        return {
            "kind": "holdout",
            "by": split.by,
            "folds": [],
            "short": f"holdout by {split.by}",
            "sentence": f"One part, held out by {split.by}, is tested.",
        }
    count, unit = len(folds), protocol.by
    if protocol.kind == "cross-corpus":
        return {
            "kind": protocol.kind,
            "by": "corpus",
            "folds": list(folds),
            "short": f"cross-corpus ({count} corpora)",
            "sentence": (
                f"Cross-corpus: models are trained and chosen on each of {count} corpora alone, "
                f"and tested on its held-out part (by {split.by}) and on all clips of the others. "
                "Figures outside the matrix take all of these tests together, so a clip counts "
                "once for every corpus whose models it tests."
            ),
        }
    leaving = protocol.kind == "leave-one-out"
    short = f"leaving one {unit} out" if leaving else f"{count}-fold by {unit}"
    return {
        "kind": protocol.kind,
        "by": unit,
        "folds": list(folds),
        "short": f"{short} ({count} folds)" if leaving else short,
        "sentence": (
            f"Cross-validation, {short}: every clip is tested once, by models of which nothing, "
            f"teacher and soft targets included, was trained or chosen on its {unit}; the "
            f"predictions of all {count} folds are scored together."
        ),
    }


@styled
def over_folds(baseline: Record, models: Sequence[Record], narrow: bool = False) -> str | None:
    """A dot per fold and model, with the mean as a bar; None for a holdout."""
    if baseline["folds"] is None:
        return None
    rows = [{**baseline, "name": f"always {baseline['label']}", "role": "baseline"}, *models]
    height = 0.9 + 0.34 * len(rows)
    if narrow:
        figure, axes = subplots(NARROW, 0.5 + height * len(PANELS), len(PANELS), 1)
    else:
        figure, axes = subplots(WIDTH, height, 1, len(PANELS))
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for y, row in enumerate(rows):
            found = row["folds"][metric]
            values = np.array([value for value in found["values"] if value is not None])
            colour = ROLE_COLOURS.get(row["role"], INK)
            colour = BASELINE if row["role"] == "baseline" else colour
            # Spread over the row, in the order of the folds, so that equal values can be told.
            places = y + np.linspace(-0.22, 0.22, max(len(values), 1))[: len(values)]
            dots(axis, values, places, colour)
            if found["mean"] is not None:
                axis.plot([found["mean"]] * 2, [y - 0.32, y + 0.32], color=colour, linewidth=2)
        axis.set_title(f"{title}, each fold")
        axis.set_xlim(0, 1)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.7)
        axis.set_axisbelow(True)
        first = narrow or axis is axes.flat[0]
        axis.set_yticks(range(len(rows)), [str(row["name"]) for row in rows] if first else [])
    return to_svg(
        figure,
        "folds-narrow" if narrow else "folds",
        "UAR, macro F1 and weighted F1 of every fold, a dot each, and their means as bars; means "
        "and deviations are in the table",
    )
