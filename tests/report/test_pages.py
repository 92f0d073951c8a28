"""Tables as a page: every cell is on it, nothing in a cell is read as markup, links lead on."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from multistill.report.pages import Block, Page, to_html
from multistill.report.tables import Table

CELL = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=8)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), max_size=4)


class Cells(HTMLParser):
    """Texts of the cells of all bodies of tables, links, and what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.body = self.cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a":
            self.links.append(str(values["href"]))
        if tag in ("link", "script", "img") or "src" in values:
            self.sources.append(tag)
        self.body = self.body if tag not in ("tbody", "thead") else tag == "tbody"
        if tag == "tr" and self.body:
            self.rows.append([])
        if tag in ("td", "th") and self.body:
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


def cells(*blocks: Block, title: str = "t", note: str = "") -> Cells:
    found = Cells()
    found.feed(to_html(Page(title, "test", "lead", blocks, notes=[note] if note else [])))
    return found


@given(ROWS, CELL)
def test_a_page_has_the_cells_and_reads_none_of_them(
    rows: list[tuple[str, str, str]], text: str
) -> None:
    table = Table(["name", "word", "figure"], rows, frozenset({"figure"}))
    found = cells(Block("b", table, note=text), title=text, note=text)
    assert found.rows == [list(row) for row in rows]
    assert not found.sources and not found.links


def test_figures_links_and_groups() -> None:
    table = Table(
        ["run", "model", "UAR"],
        [["a", "x", "0.5 [0.4, 0.6]"], ["a", "y", "0.6 SD 0.1"], ["b", "x", None]],
        frozenset({"UAR"}),
    )
    links = ["file:///a", None, None]
    found = cells(Block("b", table, grouped=True, links=links))
    assert found.rows == [
        ["a"],
        ["x", "0.5 [0.4, 0.6]"],
        ["y", "0.6 SD 0.1"],
        ["b"],
        ["x", ""],
    ]
    assert found.links == ["file:///a"]
