"""Names the column of every table cell in the cell itself, for screens too narrow for a table.

There the style sheet stacks the cells of a row and shows each with its `data-label`.
"""

from __future__ import annotations

import html
from html.parser import HTMLParser


def label_cells(page: str) -> str:
    """The page with `data-label` on each cell whose table has a head; nothing else changes."""
    cells = _Cells(page)
    cells.feed(page)
    parts, end = [], 0
    for position, label in cells.labels:
        start = position + len("<td")
        parts += [page[end:start], f' data-label="{html.escape(label, quote=True)}"']
        end = start
    return "".join([*parts, page[end:]])


class _Cells(HTMLParser):
    """Finds the positions of cells and the texts of their columns' heads.

    Attributes:
        labels: position of `<td` in the page, and the column's head.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.labels: list[tuple[int, str]] = []
        self._starts = [0]
        for line in page.split("\n"):  # the lines that HTMLParser counts
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._heads: list[str] = []
        self._column = 0
        self._in_head = False
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._heads = []
        elif tag == "thead":
            self._in_head = True
        elif tag == "tr":
            self._column = 0
        elif tag in {"td", "th"}:
            self._cell(tag, int(dict(attrs).get("colspan") or 1))
        elif tag == "br" and self._in_heading:
            self._heads[-1] += " "

    def _cell(self, tag: str, columns: int) -> None:
        if self._in_head:
            self._heads += [""] * columns
            self._in_heading = True
            return
        if tag == "td" and columns == 1 and self._column < len(self._heads):
            line, offset = self.getpos()
            label = " ".join(self._heads[self._column].split())
            if label:
                self.labels.append((self._starts[line - 1] + offset, label))
        self._column += columns

    def handle_endtag(self, tag: str) -> None:
        if tag == "thead":
            self._in_head = False
        if tag in {"td", "th"}:
            self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._heads[-1] += data
