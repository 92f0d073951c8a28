"""The figures of the report. Each function takes plain data and returns inline SVG, or None
where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.config import SearchConfig
from multistill.evaluation.comparisons import is_shown
from multistill.evaluation.figures import METRIC_TITLES, over_seeds
from multistill.report.svg import (
    ACCENT,
    BASELINE,
    CONTROL,
    INK,
    LINE,
    MUTED,
    NARROW,
    PAPER,
    ROLE_COLOURS,
    STUDENT,
    TEACHER,
    WIDTH,
    styled,
    subplots,
    to_svg,
)
from multistill.typing import FloatArray

Record = Mapping[str, Any]

PANELS = {"uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}
RASTER_FROM = 400
"""Scatter plots of at least this many points are rasterized inside the SVG, to keep it small."""


@styled
def results(
    baseline: Record, models: Sequence[Record], confidence: float, narrow: bool = False
) -> str:
    """Values with intervals, one panel per metric, with the baseline as a vertical line."""
    rows = [{**baseline, "name": f"always {baseline['label']}", "role": "baseline"}]
    rows += [dict(model) for model in models]
    figure, axes = _interval_panels(len(rows), narrow)
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        reference = rows[0]["metrics"][metric]["value"]
        if reference is not None:
            axis.axvline(reference, color=BASELINE, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
        for y, row in enumerate(rows):
            _draw_interval(axis, y, over_seeds(row, metric), ROLE_COLOURS.get(row["role"], INK))
        axis.set_title(title)
        axis.set_xlim(0, 1)
        _style_interval_panel(axis)
    _label_rows(axes, [str(row["name"]) for row in rows])
    return to_svg(
        figure,
        _id("results", narrow),
        f"UAR, macro F1 and weighted F1 of every model with {100 * confidence:.0f} % intervals; "
        "the values are listed in the table above",
    )


@styled
def differences(
    comparisons: Sequence[Record], confidence: float, narrow: bool = False
) -> str | None:
    """Student minus control with intervals, one panel per metric, centred on zero."""
    if not comparisons:
        return None
    figure, axes = _interval_panels(len(comparisons), narrow)
    limit = 0.02
    for comparison in comparisons:
        for metric in PANELS:
            score = comparison["differences"][metric]
            limit = max(limit, *(abs(score[key] or 0.0) for key in ("value", "low", "high")))
    tick = _round_below(0.8 * limit)
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        axis.axvline(0, color=MUTED, linewidth=1, zorder=0)
        for y, comparison in enumerate(comparisons):
            score = comparison["differences"][metric]
            if score["value"] is None:
                continue
            shown = is_shown(score, confidence)
            _draw_interval(axis, y, score, STUDENT if shown else CONTROL)
        axis.set_title(title)
        axis.set_xlabel("student minus control")
        axis.set_xlim(-1.1 * limit, 1.1 * limit)
        axis.set_xticks([-tick, 0, tick])
        _style_interval_panel(axis)
    _label_rows(axes, [str(comparison["model"]) for comparison in comparisons])
    return to_svg(
        figure,
        _id("differences", narrow),
        f"difference of each student to its control with {100 * confidence:.0f} % intervals",
    )


def _round_below(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most a positive value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * power <= value) * power)


def _interval_panels(rows: int, narrow: bool) -> Any:
    """(figure, axes [rows, columns]): a panel per metric, side by side or below each other."""
    height = 1.0 + 0.32 * rows
    if narrow:
        return subplots(NARROW, len(PANELS) * height, len(PANELS), 1, sharey=True)
    return subplots(WIDTH, height, 1, len(PANELS), sharey=True)


def _id(name: str, narrow: bool) -> str:
    return f"{name}-narrow" if narrow else name


def _draw_interval(axis: Any, y: int, score: Record, colour: str) -> None:
    """A dot at the value and a bar over its interval; nothing where the value is undefined."""
    if score["value"] is None:
        return
    if score["low"] is not None:
        axis.plot([score["low"], score["high"]], [y, y], color=colour, linewidth=2)
    axis.plot(
        score["value"],
        y,
        "o",
        color=colour,
        markersize=6.5,
        markeredgecolor=PAPER,
        markeredgewidth=1.2,
    )


def _style_interval_panel(axis: Any) -> None:
    axis.grid(axis="x", alpha=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _label_rows(axes: Any, names: Sequence[str]) -> None:
    """Name the rows of the panels in the first column, the first row on top."""
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        for label in axis.get_yticklabels():
            label.set_color(INK)


@styled
def reliability(models: Sequence[Record], narrow: bool = False) -> str | None:
    """Accuracy against confidence, one panel per model; dot size is the number of clips."""
    shown = [model for model in models if model["role"] != "control"]
    if not shown:
        return None
    rows, columns = grid_shape(len(shown), narrow)
    width = NARROW / 2 if narrow else WIDTH / 4
    figure, axes = subplots(width * columns, 2.6 * rows, rows, columns, sharex=True, sharey=True)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, model in zip(axes.flat, shown, strict=False):
        bins = np.asarray(model["reliability"])
        bins = bins[bins[:, 0] > 0]
        axis.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        confidence, accuracy = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
        colour = ROLE_COLOURS[model["role"]]
        axis.vlines(confidence, confidence, accuracy, color=colour, alpha=0.35, linewidth=1.2)
        size = 12 + 90 * bins[:, 0] / bins[:, 0].sum()
        axis.scatter(confidence, accuracy, s=size, color=colour, edgecolor=PAPER, linewidth=0.8)
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
    return to_svg(
        figure,
        _id("reliability", narrow),
        "reliability diagrams: accuracy against confidence of each model",
    )


def grid_shape(panels: int, narrow: bool) -> tuple[int, int]:
    """(rows, columns) for so many panels, at most four in a row, or two."""
    columns = min(2 if narrow else 4, panels)
    return -(-panels // columns), columns


@styled
def classes(shares: Mapping[str, Mapping[str, float]], narrow: bool = False) -> str | None:
    """Share of each class, one bar per set of clips (training before caps, the splits after).

    Classes that no set has are left out.
    """
    labels = dict.fromkeys(label for values in shares.values() for label in values)
    shown = [label for label in labels if any(values.get(label) for values in shares.values())]
    if not shown:
        return None
    figure, axes = subplots(NARROW if narrow else WIDTH, 2.8 if narrow else 2.5)
    axis = axes[0][0]
    colours = [CONTROL, TEACHER, STUDENT, ACCENT, BASELINE]
    width = 0.8 / len(shares)
    for index, (name, values) in enumerate(shares.items()):
        positions = np.arange(len(shown)) + (index - (len(shares) - 1) / 2) * width
        axis.bar(
            positions,
            [100 * values.get(label, 0.0) for label in shown],
            width=0.88 * width,
            color=colours[index % len(colours)],
            label=name,
        )
    axis.set_xticks(range(len(shown)), shown)
    axis.set_ylabel("% of labelled clips")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    if narrow:
        axis.tick_params(axis="x", labelsize=8)
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1)} if narrow else {"loc": "upper right"}
    axis.legend(ncols=2 if narrow else len(shares), **above)
    return to_svg(figure, _id("classes", narrow), "share of each class by split")


@styled
def curves(
    histories: Mapping[str, Sequence[Record]], metric: str, narrow: bool = False
) -> str | None:
    """Training and validation loss by epoch, one panel per model, with the best epoch marked."""
    shown = {name: epochs for name, epochs in histories.items() if len(epochs) > 1}
    if not shown:
        return None
    rows, columns = grid_shape(len(shown), narrow)
    width = NARROW / 2 if narrow else WIDTH / 4
    figure, axes = subplots(width * columns, 1.8 * rows + 0.2, rows, columns)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, epochs) in zip(axes.flat, shown.items(), strict=False):
        number = [epoch["epoch"] for epoch in epochs]
        axis.plot(number, _series(epochs, "train_loss"), color=CONTROL)
        axis.plot(number, _series(epochs, "valid_loss"), color=TEACHER)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        values = _series(epochs, f"valid_{metric}")
        if np.isfinite(values).any():
            sign = -1 if metric == "loss" else 1
            best = int(np.nanargmax(sign * values))
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
    text = "training and validation loss and validation metric by epoch"
    return to_svg(figure, _id("curves", narrow), text)


@styled
def temperature_weight(trials: Sequence[Record], metric: str, best: Record) -> str | None:
    """Temperature and weight of every trial, coloured by its value; the best one is ringed and
    stopped trials are small."""
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
    figure, axes = subplots(4.6, 3.4)
    axis = axes[0][0]
    scatter = axis.scatter(
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
    bar = figure.colorbar(scatter, ax=axis, fraction=0.05, pad=0.03)
    bar.set_label(_validation(metric), color=MUTED)
    bar.outline.set_visible(False)
    return to_svg(figure, "txw", "validation value of every trial by temperature and weight")


@styled
def search_history(trials: Sequence[Record], metric: str) -> str | None:
    """The value of each trial in order, and the best complete trial so far."""
    points = [
        (t["trial"], t["value"], t["state"] == "complete") for t in trials if t["value"] is not None
    ]
    if len(points) < 2:
        return None
    values = np.asarray(sorted(points), dtype=float)
    complete = values[:, 2] > 0
    large = 22 if len(values) < RASTER_FROM else 7
    figure, axes = subplots(4.4, 3.4)
    axis = axes[0][0]
    for mask, colour, label in (
        (~complete, LINE, "stopped early"),
        (complete, CONTROL, "complete"),
    ):
        if mask.any():
            axis.scatter(
                values[mask, 0],
                values[mask, 1],
                s=large,
                color=colour,
                linewidth=0,
                label=label,
                rasterized=len(values) >= RASTER_FROM,
            )
    if complete.any():
        better = np.minimum if metric == "loss" else np.maximum
        best = better.accumulate(values[complete, 1])
        axis.step(values[complete, 0], best, where="post", color=STUDENT, label="best so far")
    axis.set_title("trials in order")
    axis.set_xlabel("trial")
    axis.set_ylabel(_validation(metric))
    axis.legend(loc="best", handletextpad=0.4)
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    return to_svg(figure, "history", "value of each trial and the best so far")


@styled
def pareto(trials: Sequence[Record], front: Sequence[Record], config: SearchConfig) -> str | None:
    """The metric against the cost of a trial; the Pareto front is drawn as a line."""
    points = [
        (t["cost"], t["value"])
        for t in trials
        if t["state"] == "complete" and t["cost"] is not None and t["value"] is not None
    ]
    if config.second is None or len(points) < 2:
        return None
    values = np.asarray(points, dtype=float)
    figure, axes = subplots(4.6, 3.4)
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
    return to_svg(figure, "pareto", "validation value against cost, with the Pareto front")


def _validation(metric: str) -> str:
    return f"validation {METRIC_TITLES.get(metric, metric)}"


@styled
def importance(shares: Mapping[str, float]) -> str | None:
    """Importance of each searched parameter."""
    if not shares:
        return None
    ranked = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = subplots(4.9, 0.7 + 0.3 * len(ranked))
    axis = axes[0][0]
    axis.barh([name for name, _ in ranked], [value for _, value in ranked], color=TEACHER)
    axis.set_xlim(0, max(1e-9, max(shares.values())) * 1.15)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    for y, (_, value) in enumerate(ranked):
        axis.annotate(
            f"{value:.2f}",
            (value, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=MUTED,
        )
    axis.set_xlabel("share of the variance explained")
    return to_svg(figure, "importance", "importance of each searched parameter")


@styled
def histogram(name: str, title: str, edges: Sequence[float], counts: Sequence[int]) -> str | None:
    """Clips per bin; bars have equal widths because the edges need not be evenly spaced."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return None
    first, last = int(filled[0]), int(filled[-1])
    labels = [f"{edge:g}" for edge in edges[first : last + 2]]
    figure, axes = subplots(WIDTH / 2 - 0.4, 2.3)
    axis = axes[0][0]
    shown = counts[first : last + 1]
    axis.bar(range(len(shown)), shown, width=0.94, align="edge", color=TEACHER)
    # Labels mark the edges between bars; with many edges, every second label is skipped.
    step = 1 if len(labels) <= 10 else 2
    axis.set_xticks(range(0, len(labels), step), labels[::step])
    axis.set_title(title)
    axis.set_ylabel("clips")
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)
    return to_svg(figure, name, f"histogram: {title}")


def _series(epochs: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    """A figure of each epoch, NaN where it is missing or was not finite."""
    return np.array([epoch.get(name) for epoch in epochs], np.float64)
