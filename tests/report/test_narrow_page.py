"""The page on a screen of 400 px: nothing has to be scrolled sideways, no cell is nameless."""

from __future__ import annotations

import re
from copy import deepcopy
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import CLASSES
from multistill.report import plots
from multistill.report.cell_labels import label_cells
from multistill.report.environment import environment
from multistill.report.html import _present_classes

if TYPE_CHECKING:
    from helpers.evaluation_case import EvaluationCase

TEXT_WIDTH_PT = 0.75 * (400 - 2 * 1.1 * 16)
"""Points between the margins of a screen of 400 px."""


class Cells(HTMLParser):
    """Cells of the tables that are stacked on narrow screens: classes, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked = False
        self.cells: list[dict[str, str | None]] = []
        self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "div" and values.get("class") == "scroll":
            self.stacked = True
        if tag == "table":
            self.tables += 1
            assert self.stacked or "matrix" in str(values.get("class"))
        if tag == "td" and self.stacked:
            self.cells.append(values)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.stacked = False


@pytest.fixture
def page(evaluation_case: EvaluationCase) -> str:
    return evaluation_case.default_report[1]


def test_every_cell_of_a_stacked_table_names_its_column(page: str) -> None:
    cells = Cells()
    cells.feed(page)
    assert cells.tables > 10
    assert len(cells.cells) > 100
    for cell in cells.cells:
        assert cell.get("data-label") or int(cell.get("colspan") or 1) > 1
    labels = {cell.get("data-label") for cell in cells.cells}
    assert {"UAR", "macro F1", "parameters end to end", "neutral", "fingerprint"} <= labels


def test_every_wide_figure_has_a_narrow_twin_of_legible_size(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    narrow = re.findall(r'<div class="narrow"><svg[^>]*viewBox="0 0 ([\d.]+) ', page)
    assert len(narrow) == len(re.findall(r'<div class="wide">', page)) == 8
    hidden = re.sub(r'<div class="wide">.*?</div>', "", page, flags=re.DOTALL)
    for width in re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+) ', hidden):
        # Labels of 9 pt are drawn with at least 9 CSS pixels, 6.75 pt.
        assert 9 * TEXT_WIDTH_PT / float(width) >= 6.75


def test_the_style_sheet_fixes_no_width_beyond_the_screen() -> None:
    css = (environment().loader.get_source(environment(), "report.css"))[0]  # type: ignore[union-attr]
    start = css.index("@media screen and (max-width: 40rem)")
    narrow = css[start : css.index("@media print")]
    assert "min-width" not in re.sub(r"minmax\(|max-width", "", narrow)
    assert "overflow-x" not in narrow
    for rem in re.findall(r"minmax\(([\d.]+)rem", narrow):
        assert float(rem) * 16 <= 400 - 2 * 1.1 * 16


def test_classes_that_the_corpus_lacks_are_left_out(evaluation_case: EvaluationCase) -> None:
    report: dict[str, Any] = deepcopy(evaluation_case.default_report[0])
    assert [label for _, label in _present_classes(report, None)] == list(CLASSES)
    lacking = {"surprise", "disgust", "fear"}
    for counts in report["corpus"]["class_counts"].values():
        counts.update(dict.fromkeys(lacking, 0))
    for model in (*report["models"], *report["references"]):
        for row in model["confusion"]:
            for label in lacking:
                row[CLASSES.index(label)] = 0
    present = [label for _, label in _present_classes(report, None)]
    assert present == [label for label in CLASSES if label not in lacking]
    report["models"][0]["confusion"][0][CLASSES.index("fear")] = 1
    assert "fear" in [label for _, label in _present_classes(report, None)], "it was predicted"


@pytest.mark.parametrize("narrow", [False, True])
def test_the_figure_of_classes_leaves_out_those_without_clips(narrow: bool) -> None:
    svg = plots.classes({"train": {"sad": 0.5, "angry": 0.5}, "test": {"sad": 1.0}}, narrow)
    assert svg is not None
    assert ">sad<" in svg
    assert ">angry<" in svg
    assert ">fear<" not in svg
    assert plots.classes({"train": dict.fromkeys(CLASSES, 0.0)}, narrow) is None


WORDS = st.text(alphabet="abc &<>\"'é감", max_size=8).map(
    lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
)


@given(
    st.lists(WORDS, min_size=1, max_size=5),
    st.integers(1, 4),
    st.text("1\n\r\f\v\x1c\x85\u2028\u2029", max_size=8),
)
def test_labels_change_nothing_else(heads: list[str], rows: int, text: str) -> None:
    head = "".join(f'<th scope="col">{text}<br>x</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f'<td class="left">{n}</td>' for n in range(len(heads))) + "</tr>\n"
        for _ in range(rows)
    )
    page = f"<p>{text}\n2</p><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    labelled = label_cells(page)
    assert re.sub(r' data-label="[^"]*"', "", labelled) == page
    assert labelled.count("data-label") == rows * len(heads)
    assert label_cells("<table><tr><td>no head</td></tr></table>").count("data-label") == 0
