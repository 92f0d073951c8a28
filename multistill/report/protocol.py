"""The protocol in words, and the folds of a cross-validation as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.config import JobConfig
from multistill.report.plots import PANELS
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
from multistill.wording import counted

Record = Mapping[str, Any]


def describe_protocol(job: JobConfig, folds: Sequence[Record]) -> dict[str, Any]:
    """`kind`, `by`, `folds` (as in metrics.json), `repeats`, `short` for tables and `sentence`."""
    protocol, split = job.protocol, job.split
    if not folds:
        return {
            "kind": "holdout",
            "by": split.by,
            "folds": [],
            "repeats": 1,
            "short": f"holdout by {split.by}",
            "sentence": f"One part, held out by {split.by}, is tested.",
        }
    chosen = (
        f" But the settings of {job.searched_student().name}-search and its control were chosen on "
        "the first fold, for all folds."
        if job.search.enabled and not job.search.nested
        else ""
    )
    if protocol.kind == "cross-corpus":
        return {
            "kind": protocol.kind,
            "by": "corpus",
            "folds": list(folds),
            "repeats": 1,
            "short": f"cross-corpus ({counted(len(folds), 'corpus')})",
            "sentence": (
                f"Cross-corpus: models are trained and chosen on each of {len(folds)} corpora "
                f"alone, and tested on its held-out part (by {split.by}) and on all clips of the "
                "others. Figures outside the matrix take all of these tests together, so a clip "
                f"counts once for every corpus whose models it tests.{chosen}"
            ),
        }
    repeats, unit = protocol.repeats, protocol.by
    count = len(folds) // repeats
    often = "once" if repeats == 1 else "once in each repetition"
    leaving = protocol.kind == "leave-one-out"
    short = f"leaving one {unit} out" if leaving else f"{count}-fold by {unit}"
    linked = unit == "speaker" and leaving and max(fold["speakers"] for fold in folds) > 1
    if linked:  # `protocol.by`: who shares a session is tested together
        short = "leaving linked speakers out"
    short = f"{repeats} x {short}" if repeats > 1 else short
    again = (
        f" The folds were drawn {repeats} times, and everything was trained for each: figures are "
        f"of the counts of all {repeats} repetitions, averaged clip by clip; what is of single "
        "predictions (selective accuracy, speakers, groups, listed clips, layers, McNemar's test) "
        "is of the first."
        if repeats > 1
        else ""
    )
    return {
        "kind": protocol.kind,
        "by": unit,
        "folds": list(folds),
        "repeats": repeats,
        "short": f"{short} ({counted(count, 'fold')})" if leaving else short,
        "sentence": (
            f"Cross-validation, {short}: every clip is tested {often}, by models of which "
            f"nothing, teacher and soft targets included, was trained or chosen on its {unit}; the "
            f"predictions of all {count} folds are scored together.{again}"
            + (" Speakers who share a session are one group, tested together." if linked else "")
            + chosen
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
