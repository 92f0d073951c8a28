"""Robustness of the models: heat map, and lines of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.report.svg import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    NARROW,
    STUDENT,
    WIDTH,
    styled,
    subplots,
    to_svg,
)

Record = Mapping[str, Any]

FULL = 0.3
"""Change of UAR that has the full colour."""


def present(robustness: Record) -> list[Record]:
    """The conditions that change a clip, in the order of the pack."""
    return [each for each in robustness["conditions"] if each["reason"] is None]


@styled
def heat_map(robustness: Record | None, narrow: bool = False) -> str | None:
    """Change of UAR by condition (rows) and model (columns); None without the pack."""
    if not robustness or not robustness["models"]:
        return None
    from matplotlib.patches import Rectangle

    conditions, models = present(robustness), robustness["models"]
    width = NARROW if narrow else min(WIDTH, 3.0 + 1.15 * len(models))
    figure, axes = subplots(width, 1.0 + 0.3 * len(conditions))
    [axis] = axes.flat
    for y, condition in enumerate(conditions):
        for x, model in enumerate(models):
            found = model["conditions"].get(condition["name"])
            change = found["change"] if found else {"value": None}
            text, share = _cell(change["value"])
            if share:
                colour = ACCENT if share < 0 else STUDENT
                corner = (x - 0.5, y - 0.5)
                axis.add_patch(
                    Rectangle(corner, 1, 1, facecolor=colour, alpha=0.75 * abs(share), linewidth=0)
                )
            certain = found is not None and _excludes_zero(change)
            axis.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                color=INK if found else MUTED,
                fontweight="bold" if certain else "normal",
                fontsize=9,
            )
    for y in range(len(conditions) + 1):
        axis.axhline(y - 0.5, color=LINE, linewidth=0.6)
    axis.set_xlim(-0.5, len(models) - 0.5)
    axis.set_ylim(len(conditions) - 0.5, -0.5)
    axis.set_yticks(range(len(conditions)), [each["title"] for each in conditions])
    slanted = narrow and len(models) > 3
    axis.set_xticks(
        range(len(models)),
        [str(model["name"]) for model in models],
        rotation=35 if slanted else 0,
        ha="left" if slanted else "center",
    )
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelcolor=INK)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return to_svg(
        figure,
        "robustness-narrow" if narrow else "robustness",
        "change of UAR of every model under every condition; values and intervals are in the table",
    )


def _cell(change: float | None) -> tuple[str, float]:
    """Text of a cell, and its share of the full colour, negative for a loss."""
    if change is None:
        return "\u00b7", 0.0
    text = f"{change:+.2f}".replace("-", "\u2212")
    return text, max(-1.0, min(1.0, change / FULL))


def _excludes_zero(change: Record) -> bool:
    low, high = change["low"], change["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def lines(robustness: Record | None) -> list[str]:
    """For the terminal: every model's largest loss."""
    found: Sequence[Record] = (robustness or {}).get("models", ())
    if robustness is None or not found:
        return []
    titles = {each["name"]: each["title"] for each in robustness["conditions"]}
    rows = []
    for model in found:
        changes = {
            titles[name]: entry["change"]
            for name, entry in model["conditions"].items()
            if entry["change"]["value"] is not None
        }
        if not changes:
            continue
        worst = min(changes, key=lambda title: changes[title]["value"])
        change = changes[worst]
        interval = (
            "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
        )
        rows.append(f"  {model['name']}: {worst} {change['value']:+.3f}{interval}")
    return ["robustness, largest change of UAR for the worse:", *rows] if rows else []
