"""Gain from distillation by share of the training labels: figure, and lines of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.evaluation.figures import METRIC_TITLES, PRIMARY_METRIC
from multistill.report.svg import (
    ACCENT,
    BASELINE,
    CONTROL,
    INK,
    MUTED,
    NARROW,
    PAPER,
    STUDENT,
    TEACHER,
    WIDTH,
    styled,
    subplots,
    to_svg,
)

Point = Mapping[str, Any]

COLOURS = (STUDENT, TEACHER, ACCENT, CONTROL, INK)
MARKERS = "osD^v"
DODGE = 1.06
"""Factor between the horizontal positions of two students, so that their intervals can be told."""


@styled
def gain_by_label_share(
    points: Sequence[Point], confidence: float, narrow: bool = False
) -> str | None:
    """The gain with intervals, and the scores that it is between, by share of the labels.

    A hollow marker is of a comparison in which the student or its control learnt nothing.
    """
    if not points:
        return None
    if narrow:
        figure, axes = subplots(NARROW, 6.4, 2, 1)
    else:
        figure, axes = subplots(WIDTH, 3.5, 1, 2)
    gains, scores = axes.flat
    title = METRIC_TITLES[PRIMARY_METRIC]
    students = by_student(points)
    gains.axhline(0, color=MUTED, linewidth=1, zorder=0)
    for index, (name, own) in enumerate(students.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        shift = DODGE ** (index - (len(students) - 1) / 2)
        _draw_gains(gains, own, shift, colour, marker, name)
        _draw_scores(scores, own, colour, marker)
    majority = points[0]["majority"][PRIMARY_METRIC]
    if majority is not None:
        scores.axhline(majority, color=BASELINE, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    for colour, style, label in (
        (MUTED, "-", "distilled"),
        (MUTED, (0, (4, 2)), "control"),
        (BASELINE, (0, (1, 2)), "majority"),
    ):
        scores.plot([], [], color=colour, linestyle=style, label=label)
    gains.set_title(f"{title}: distilled minus control")
    scores.set_title(f"{title} on test, means over seeds")
    scores.set_ylim(bottom=0, top=1.15 * scores.get_ylim()[1])
    gains.legend(loc="best", handletextpad=0.4)
    scores.legend(loc="upper left", ncols=3)
    for axis in (gains, scores):
        _label_shares(axis, points)
    return to_svg(
        figure,
        "label-shares-narrow" if narrow else "label-shares",
        f"difference of distilled students to their controls with {100 * confidence:.0f} % "
        "intervals, and scores of both, by share of the training labels; the values are in the "
        "table",
    )


def by_student(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of every student, in their order."""
    students: dict[str, list[Point]] = {}
    for point in points:
        students.setdefault(str(point["student"]), []).append(point)
    return students


def _draw_gains(
    axis: Any, points: Sequence[Point], shift: float, colour: str, marker: str, name: str
) -> None:
    shown = [point for point in points if point["gain"][PRIMARY_METRIC]["value"] is not None]
    positions = [shift * point["share"] for point in shown]
    gains = [point["gain"][PRIMARY_METRIC] for point in shown]
    axis.plot(positions, [gain["value"] for gain in gains], color=colour, alpha=0.4, linewidth=1.2)
    for x, point, gain in zip(positions, shown, gains, strict=True):
        if gain["low"] is not None:
            axis.plot([x, x], [gain["low"], gain["high"]], color=colour, linewidth=2)
        axis.plot(
            x,
            gain["value"],
            marker,
            color=PAPER if point["not_trained"] else colour,
            markersize=6.5,
            markeredgecolor=colour if point["not_trained"] else PAPER,
            markeredgewidth=1.2,
        )
    axis.plot([], [], marker, color=colour, label=name)


def _draw_scores(axis: Any, points: Sequence[Point], colour: str, marker: str) -> None:
    for role, style in (("distilled", "-"), ("control", (0, (4, 2)))):
        shown = [point for point in points if point[role][PRIMARY_METRIC]["value"] is not None]
        axis.plot(
            [point["share"] for point in shown],
            [point[role][PRIMARY_METRIC]["value"] for point in shown],
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4,
        )


def _label_shares(axis: Any, points: Sequence[Point]) -> None:
    """A logarithmic axis with a tick per share, which also tells the number of labelled clips."""
    clips = {point["share"]: point["labelled_clips"] for point in points}
    axis.set_xscale("log")
    axis.set_xticks(list(clips), [f"{percent(share)}\n{count}" for share, count in clips.items()])
    axis.set_xticks([], minor=True)
    axis.set_xlim(0.8 * min(clips), 1.25 * max(clips))
    axis.set_xlabel("training labels of the student: share, clips")
    axis.grid(axis="y", alpha=0.7)
    axis.set_axisbelow(True)


def percent(share: float) -> str:
    """`12.5 %`, with as many digits as the share has."""
    return f"{100 * share:.10g} %"


def lines(points: Sequence[Point], confidence: float) -> list[str]:
    """For the terminal: one line per student with its gains, preceded by what they are."""
    if not points:
        return []
    title = METRIC_TITLES[PRIMARY_METRIC]
    head = (
        f"gain from distillation by share of the labels, {title}, {100 * confidence:.0f} % "
        f"intervals, means of {points[0]['seeds']} seeds:"
    )
    rows = []
    for name, own in by_student(points).items():
        gains = [f"{percent(point['share'])} {_gain(point)}" for point in own]
        rows.append(f"  {name}: {'; '.join(gains)}")
    return [head, *rows]


def _gain(point: Point) -> str:
    gain = point["gain"][PRIMARY_METRIC]
    if point["not_trained"]:
        return f"{' and '.join(point['not_trained'])} NOT TRAINED"
    if gain["value"] is None:
        return "not defined"
    if gain["low"] is None:
        return f"{gain['value']:+.3f} (no interval)"
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
