"""The picture of UAR by encoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.report.svg import (
    BASELINE,
    CONTROL,
    MUTED,
    NARROW,
    PAPER,
    STUDENT,
    WIDTH,
    styled,
    subplots,
    to_svg,
)

Record = Mapping[str, Any]


def with_layers(layers: Mapping[str, Record]) -> dict[str, Record]:
    """The encoders of which single layers were probed."""
    return {name: found for name, found in layers.items() if found["reason"] is None}


@styled
def by_layer(
    layers: Mapping[str, Record],
    references: Sequence[Record],
    baseline: Record,
    confidence: float,
    narrow: bool = False,
) -> str | None:
    """UAR of a probe per layer with intervals, a panel per encoder; None without layers.

    Args:
        references: entries of metrics.json, for the probe of all layers together.
    """
    shown = with_layers(layers)
    if not shown:
        return None
    if narrow:
        figure, axes = subplots(NARROW, 3.0 * len(shown), len(shown), 1)
    else:
        figure, axes = subplots(min(WIDTH, 5.2 * len(shown)), 3.2, 1, len(shown))
    by_name = {each["name"]: each for each in references}
    for axis, (encoder, found) in zip(axes.flat, shown.items(), strict=True):
        places = range(len(found["layers"]))
        values = [each["uar"]["value"] for each in found["layers"]]
        drawn = [(x, value) for x, value in zip(places, values, strict=True) if value is not None]
        axis.plot([x for x, _ in drawn], [y for _, y in drawn], color=STUDENT, alpha=0.4)
        for x, value in drawn:
            score = found["layers"][x]["uar"]
            if score["low"] is not None:
                axis.plot([x, x], [score["low"], score["high"]], color=STUDENT, linewidth=2)
            axis.plot(x, value, "o", color=STUDENT, markersize=6.5, mec=PAPER, mew=1.2)
        together = by_name.get(found["together"])
        lines = [
            (together and together["metrics"]["uar"]["value"], CONTROL, (0, (4, 2)), "all layers"),
            (
                found["chosen"] and found["chosen"]["uar"]["value"],
                MUTED,
                "-",
                "chosen on validation",
            ),
            (baseline["metrics"]["uar"]["value"], BASELINE, (0, (1, 2)), "majority"),
        ]
        for value, colour, style, label in lines:
            if value is not None:
                axis.axhline(
                    value, color=colour, linestyle=style, linewidth=1.2, label=label, zorder=0
                )
        axis.set_title(f"{encoder}: {found['name']}")
        axis.set_xticks(places, [str(each["layer"]) for each in found["layers"]])
        axis.set_xlabel("hidden state (0 is the input of layer 1)")
        axis.set_ylabel("UAR")
        axis.set_ylim(0, 1)
        axis.grid(axis="y", alpha=0.7)
        axis.set_axisbelow(True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=8)
    return to_svg(
        figure,
        "layers-narrow" if narrow else "layers",
        f"UAR of a linear probe of every encoder layer with {100 * confidence:.0f} % intervals; "
        "the values are in the table",
    )
