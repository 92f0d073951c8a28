"""The report's pictures. Each function takes plain facts and returns inline SVG, or None
where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.config import CLASSES, SearchConfig
from multistill.evaluation.comparisons import WORDS
from multistill.report.svg import (
    ACCENT,
    BASELINE,
    CONTROL,
    INK,
    LINE,
    MUTED,
    PAPER,
    ROLES,
    STUDENT,
    TEACHER,
    figure,
    inline,
    styled,
)

Facts = Mapping[str, Any]

PANELS = {"uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}
WIDTH = 10.3
"""Inches of a picture as wide as the page's text."""

RASTER_FROM = 400
"""Scatters of more points become a bitmap inside the SVG: a page must open at once."""


@styled
def results(baseline: Facts, models: Sequence[Facts], confidence: float) -> str:
    """Dots with intervals, a panel a metric, the baseline's value as a line in each."""
    rows = [{**baseline, "name": f"always {baseline['label']}", "role": "baseline"}]
    rows += [dict(model) for model in models]
    made, axes = figure(WIDTH, 0.9 + 0.32 * len(rows), 1, len(PANELS), sharey=True)
    for axis, (metric, title) in zip(axes[0], PANELS.items(), strict=True):
        zero = rows[0]["metrics"][metric]["value"]
        if zero is not None:
            axis.axvline(zero, color=BASELINE, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
        for place, row in enumerate(rows):
            score = row["metrics"][metric]
            if score["value"] is None:
                continue
            colour = ROLES.get(row["role"], INK)
            if score["low"] is not None:
                axis.plot([score["low"], score["high"]], [place, place], color=colour, linewidth=2)
            axis.plot(
                score["value"],
                place,
                "o",
                color=colour,
                markersize=6.5,
                markeredgecolor=PAPER,
                markeredgewidth=1.2,
            )
        axis.set_title(title)
        axis.set_xlim(0, 1)
        axis.grid(axis="x", alpha=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    first = axes[0][0]
    first.set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
    first.set_ylim(len(rows) - 0.5, -0.5)
    for label in first.get_yticklabels():
        label.set_color(INK)
    return inline(
        made,
        "results",
        f"UAR, macro F1 and weighted F1 of every model with {100 * confidence:.0f} % intervals; "
        "the figures stand in the table above",
    )


@styled
def differences(comparisons: Sequence[Facts], confidence: float) -> str | None:
    """Student minus control, with intervals around zero."""
    if not comparisons:
        return None
    made, axes = figure(WIDTH, 1.05 + 0.32 * len(comparisons), 1, len(PANELS), sharey=True)
    reach = 0.02
    for comparison in comparisons:
        for metric in PANELS:
            score = comparison["differences"][metric]
            reach = max(reach, *(abs(score[key] or 0.0) for key in ("low", "high")))
    for axis, (metric, title) in zip(axes[0], PANELS.items(), strict=True):
        axis.axvline(0, color=MUTED, linewidth=1, zorder=0)
        for place, comparison in enumerate(comparisons):
            score = comparison["differences"][metric]
            if score["value"] is None:
                continue
            clear = score["low"] > 0 or score["high"] < 0
            colour = STUDENT if clear else CONTROL
            axis.plot([score["low"], score["high"]], [place, place], color=colour, linewidth=2)
            axis.plot(
                score["value"],
                place,
                "o",
                color=colour,
                markersize=6.5,
                markeredgecolor=PAPER,
                markeredgewidth=1.2,
            )
        axis.set_title(title)
        axis.set_xlabel("student minus control")
        axis.set_xlim(-1.1 * reach, 1.1 * reach)
        axis.grid(axis="x", alpha=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    first = axes[0][0]
    first.set_yticks(range(len(comparisons)), [str(line["model"]) for line in comparisons])
    first.set_ylim(len(comparisons) - 0.5, -0.5)
    for label in first.get_yticklabels():
        label.set_color(INK)
    return inline(
        made,
        "differences",
        f"difference of each student to its control with {100 * confidence:.0f} % intervals",
    )


@styled
def reliability(models: Sequence[Facts]) -> str | None:
    """Accuracy against confidence, a panel a model; dots grow with the number of clips."""
    shown = [model for model in models if model["role"] != "control"]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    made, axes = figure(WIDTH / 4 * columns, 2.6 * rows, rows, columns, sharex=True, sharey=True)
    for place, axis in enumerate(axes.flat):
        if place >= len(shown):
            axis.set_visible(False)
            continue
        model = shown[place]
        bins = np.asarray(model["reliability"])
        bins = bins[bins[:, 0] > 0]
        axis.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        confidence, right = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
        colour = ROLES[model["role"]]
        axis.vlines(confidence, confidence, right, color=colour, alpha=0.35, linewidth=1.2)
        size = 12 + 90 * bins[:, 0] / bins[:, 0].sum()
        axis.scatter(confidence, right, s=size, color=colour, edgecolor=PAPER, linewidth=0.8)
        axis.set_title(f"{model['name']}", fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_aspect("equal")
        axis.set_xticks([0, 0.5, 1])
        axis.set_yticks([0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xlabel("confidence")
    for row in axes:
        row[0].set_ylabel("accuracy")
    return inline(
        made, "reliability", "reliability diagrams: accuracy against confidence of each model"
    )


@styled
def classes(shares: Mapping[str, Mapping[str, float]]) -> str | None:
    """Share of each class, a bar a set (all clips before caps, the splits after)."""
    if not shares:
        return None
    made, axes = figure(WIDTH, 2.5)
    axis = axes[0][0]
    colours = [CONTROL, TEACHER, STUDENT, ACCENT, BASELINE]
    width = 0.8 / len(shares)
    for place, (name, values) in enumerate(shares.items()):
        where = np.arange(len(CLASSES)) + (place - (len(shares) - 1) / 2) * width
        axis.bar(
            where,
            [100 * values.get(label, 0.0) for label in CLASSES],
            width=0.88 * width,
            color=colours[place % len(colours)],
            label=name,
        )
    axis.set_xticks(range(len(CLASSES)), CLASSES)
    axis.set_ylabel("% of decided clips")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    axis.legend(ncols=len(shares), loc="upper right")
    return inline(made, "classes", "share of the seven classes by split")


@styled
def curves(histories: Mapping[str, Sequence[Facts]], metric: str) -> str | None:
    """Loss on training and validation over epochs, a panel a model, its best epoch marked."""
    shown = {name: epochs for name, epochs in histories.items() if len(epochs) > 1}
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    made, axes = figure(WIDTH / 4 * columns, 1.8 * rows + 0.2, rows, columns)
    for place, axis in enumerate(axes.flat):
        if place >= len(shown):
            axis.set_visible(False)
            continue
        name = list(shown)[place]
        epochs = shown[name]
        number = [epoch["epoch"] for epoch in epochs]
        axis.plot(number, [epoch.get("train_loss", np.nan) for epoch in epochs], color=CONTROL)
        axis.plot(number, [epoch.get("valid_loss", np.nan) for epoch in epochs], color=TEACHER)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        values = [epoch.get(f"valid_{metric}", np.nan) for epoch in epochs]
        if np.isfinite(values).any():
            sign = -1 if metric == "loss" else 1
            best = int(np.nanargmax(sign * np.asarray(values)))
            axis.axvline(number[best], color=STUDENT, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
            if metric != "loss":
                scale = axis.twinx()
                scale.plot(number, values, color=STUDENT)
                scale.set_ylim(0, 1)
                scale.set_yticks([0, 0.5, 1])
                scale.tick_params(labelsize=8, length=0)
                scale.spines["right"].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    return inline(made, "curves", "training and validation loss and validation metric by epoch")


@styled
def temperature_weight(trials: Sequence[Facts], metric: str, best: Facts) -> str | None:
    """Every trial's T and weight, coloured by its value; the best ringed, stopped ones small."""
    x, y = "distillation.temperature", "distillation.weight"
    points = [
        (t["params"][x], t["params"][y], t["value"], t["state"] == "complete")
        for t in trials
        if t["value"] is not None and x in t["params"] and y in t["params"]
    ]
    if len(points) < 2:
        return None
    values = np.asarray(points, dtype=float)
    order = np.argsort(values[:, 2])
    if metric == "loss":
        order = order[::-1]
    values = values[order]
    large = 40 if len(values) < RASTER_FROM else 14
    made, axes = figure(4.6, 3.4)
    axis = axes[0][0]
    drawn = axis.scatter(
        values[:, 0],
        values[:, 1],
        c=values[:, 2],
        cmap="viridis",
        s=np.where(values[:, 3] > 0, large, 0.35 * large),
        linewidth=0,
        rasterized=len(values) >= RASTER_FROM,
    )
    if x in best and y in best:
        axis.scatter([best[x]], [best[y]], s=150, facecolor="none", edgecolor=INK, linewidth=1.4)
    axis.set_title("temperature and weight")
    axis.set_xlabel("temperature T")
    axis.set_ylabel("weight of the teacher")
    bar = made.colorbar(drawn, ax=axis, fraction=0.05, pad=0.03)
    bar.set_label(_validation(metric), color=MUTED)
    bar.outline.set_visible(False)
    return inline(made, "txw", "validation value of every trial by temperature and weight")


@styled
def search_history(trials: Sequence[Facts], metric: str) -> str | None:
    """Each trial's value in order, and the best complete one so far."""
    points = [
        (t["trial"], t["value"], t["state"] == "complete") for t in trials if t["value"] is not None
    ]
    if len(points) < 2:
        return None
    values = np.asarray(sorted(points), dtype=float)
    complete = values[:, 2] > 0
    large = 22 if len(values) < RASTER_FROM else 7
    made, axes = figure(4.4, 3.4)
    axis = axes[0][0]
    for which, colour, label in (
        (~complete, LINE, "stopped early"),
        (complete, CONTROL, "complete"),
    ):
        if which.any():
            axis.scatter(
                values[which, 0],
                values[which, 1],
                s=large,
                color=colour,
                linewidth=0,
                label=label,
                rasterized=len(values) >= RASTER_FROM,
            )
    if complete.any():
        better = np.minimum if metric == "loss" else np.maximum
        running = better.accumulate(values[complete, 1])
        axis.step(values[complete, 0], running, where="post", color=STUDENT, label="best so far")
    axis.set_title("trials in order")
    axis.set_xlabel("trial")
    axis.set_ylabel(_validation(metric))
    axis.legend(loc="best", handletextpad=0.4)
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    return inline(made, "history", "value of each trial and the best so far")


@styled
def pareto(trials: Sequence[Facts], front: Sequence[Facts], config: SearchConfig) -> str | None:
    """The metric against the cost of a trial; trials that no other beats in both are joined."""
    points = [
        (t["cost"], t["value"])
        for t in trials
        if t["state"] == "complete" and t["cost"] is not None and t["value"] is not None
    ]
    if config.second is None or len(points) < 2:
        return None
    values = np.asarray(points, dtype=float)
    made, axes = figure(4.6, 3.4)
    axis = axes[0][0]
    axis.scatter(
        values[:, 0],
        values[:, 1],
        s=22 if len(values) < RASTER_FROM else 7,
        color=CONTROL,
        linewidth=0,
        rasterized=len(values) >= RASTER_FROM,
    )
    axis.plot(
        [trial["cost"] for trial in front],
        [trial["value"] for trial in front],
        "o-",
        color=STUDENT,
        markersize=5,
    )
    axis.set_title("Pareto front")
    axis.set_xlabel({"parameters": "parameters", "latency": "latency, ms"}[config.second])
    axis.set_ylabel(_validation(config.metric))
    axis.grid(alpha=0.7)
    axis.set_axisbelow(True)
    return inline(made, "pareto", "validation value against cost, with the Pareto front")


def _validation(metric: str) -> str:
    return f"validation {WORDS.get(metric, metric)}"


@styled
def importance(shares: Mapping[str, float]) -> str | None:
    """How much each searched value mattered."""
    if not shares:
        return None
    ranked = sorted(shares.items(), key=lambda item: item[1])
    made, axes = figure(4.9, 0.7 + 0.3 * len(ranked))
    axis = axes[0][0]
    axis.barh([name for name, _ in ranked], [value for _, value in ranked], color=TEACHER)
    axis.set_xlim(0, max(1e-9, max(shares.values())) * 1.15)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    for place, (_, value) in enumerate(ranked):
        axis.annotate(
            f"{value:.2f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=MUTED,
        )
    axis.set_xlabel("share of the variance explained")
    return inline(made, "importance", "importance of each searched parameter")


@styled
def histogram(name: str, title: str, edges: Sequence[float], counts: Sequence[int]) -> str | None:
    """Utterances between edges; bars of one width, since the edges need not be even."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return None
    first, last = int(filled[0]), int(filled[-1])
    labels = [f"{edges[bin]:g}" for bin in range(first, last + 2)]
    made, axes = figure(WIDTH / 2 - 0.4, 2.3)
    axis = axes[0][0]
    shown = counts[first : last + 1]
    axis.bar(range(len(shown)), shown, width=0.94, align="edge", color=TEACHER)
    # A label stands at the edge between two bars; with many, every second is left out.
    step = 1 if len(labels) <= 10 else 2
    axis.set_xticks(range(0, len(labels), step), labels[::step])
    axis.set_title(title)
    axis.set_ylabel("clips")
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    return inline(made, name, f"histogram: {title}")
