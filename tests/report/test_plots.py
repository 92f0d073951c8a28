"""Figures whose labels have to fit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from multistill.report import plots

SLACK = 1.3
"""Fonts of a browser may be wider than those that the figure was laid out with."""


@pytest.mark.parametrize("largest", [0.015, 0.05, 0.123, 0.35, 1.0])
@pytest.mark.parametrize("narrow", [False, True])
def test_tick_labels_of_differences_do_not_touch(
    monkeypatch: pytest.MonkeyPatch, largest: float, narrow: bool
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "to_svg", lambda figure, *_: drawn.append(figure))
    score = {"value": 0.0, "low": -largest, "high": largest, "p_holm": 1.0}
    differences = dict.fromkeys(plots.PANELS, score)
    comparisons = [{"model": "multimodal-search", "differences": differences}]
    plots.differences(comparisons, 0.95, narrow)
    [figure] = drawn
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    rows: dict[int, list[tuple[float, float]]] = {}
    for axis in figure.axes:
        shown = [label for label in axis.get_xticklabels() if label.get_text()]
        low, high = axis.get_xlim()
        inside = [label for label in shown if low <= label.get_position()[0] <= high]
        assert len(inside) >= 3, "zero and both sides"
        for label in inside:
            box = label.get_window_extent(renderer)
            middle, half = (box.x0 + box.x1) / 2, SLACK * box.width / 2
            rows.setdefault(round(box.y0), []).append((middle - half, middle + half))
    assert len(rows) == (len(plots.PANELS) if narrow else 1)
    for spans in rows.values():
        assert all(left[1] < right[0] for left, right in pairwise(sorted(spans)))
