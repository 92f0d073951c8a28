"""The picture of gains by share of labels, its table and the lines of the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from helpers.label_share_points import point
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.report.label_shares import gain_by_label_share, lines, percent
from multistill.report.terminal import table
from multistill.workspace import read_json

if TYPE_CHECKING:
    from helpers.evaluation_case import EvaluationCase

CURVE = [
    point("multimodal", 0.1, 0.08),
    point("multimodal", 0.25, -0.01, not_trained={"control": "not trained: why"}),
    point("multimodal", 1.0, None, None),
    point("text", 0.1, 0.03, None),
    point("text", 1.0, 0.0),
]

NUMBER = st.none() | st.floats(-1, 1).map(lambda value: round(value, 3))


@settings(max_examples=25)  # a drawing takes a quarter of a second
@given(
    st.lists(st.tuples(st.integers(0, 6), st.floats(0.001, 1), NUMBER), min_size=1, max_size=12),
    st.booleans(),
)
def test_any_points_can_be_drawn(drawn, narrow):
    points = [point(f"s{student}", share, gain) for student, share, gain in drawn]
    svg = gain_by_label_share(points, 0.95, narrow)
    assert svg is not None and svg.startswith("<svg")
    for student, *_ in drawn:
        assert f">s{student}<" in svg
    for each in points:
        assert f">{percent(each['share'])}<" in svg


def test_without_points_there_is_no_picture() -> None:
    assert gain_by_label_share([], 0.95) is None
    assert lines([], 0.95) == []


def test_the_picture_shows_shares_clips_and_the_zero_line_is_in_it() -> None:
    svg = gain_by_label_share(CURVE, 0.9)
    assert svg is not None
    assert "90 % intervals" in svg
    for text in ("10 %", "25 %", "100 %", "29", "72", "288", "majority", "distilled", "control"):
        assert f">{text}<" in svg


@pytest.mark.parametrize(("share", "text"), [(0.1, "10 %"), (0.125, "12.5 %"), (0.07, "7 %")])
def test_a_share_keeps_its_digits(share: float, text: str) -> None:
    assert percent(share) == text


def test_the_terminal_has_a_line_per_student() -> None:
    head, multimodal, text = lines(CURVE, 0.95)
    assert "macro F1, 95 % intervals, means of 5 seeds" in head
    assert multimodal.split(": ", 1)[1] == (
        "10 % +0.080 [+0.060, +0.100]; 25 % control NOT TRAINED; 100 % not defined"
    )
    assert text.endswith("10 % +0.030 (no interval); 100 % +0.000 [-0.020, +0.020]")


def test_page_and_terminal_show_the_curve_if_the_job_has_it(
    evaluation_case: EvaluationCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, page = evaluation_case.default_report
    assert report["label_shares"] == []
    assert 'id="labels"' not in page and 'href="#labels"' not in page
    changed = {**evaluation_case.metrics, "label_shares": CURVE}
    monkeypatch.setattr(
        "multistill.report.build.read_json",
        lambda path: changed if path.name == "metrics.json" else read_json(path),
    )
    report, page = evaluation_case.report()
    section = re.search(r'<section id="labels">.*?</section>', page, re.DOTALL)
    assert section is not None and 'href="#labels"' in page
    words = " ".join(re.sub(r"<[^>]*>", " ", section[0]).split())
    assert "Of 5 comparisons of macro F1, 1 is shown to be above zero" in words
    assert "(above: multimodal with 10 %)" in words
    assert words.count("not trained") == 2, "the caption and the control"
    majority = report["baseline"]["label"]
    assert "+0.080" in words and f"always {majority} - - 0.061" in words
    caption = str(table(report).caption)
    assert all(line in caption for line in lines(CURVE, report["confidence"]))
