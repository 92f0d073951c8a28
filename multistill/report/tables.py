"""Tables as text: for the terminal, and as CSV, Markdown and LaTeX for a paper or a sheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Format = Literal["csv", "markdown", "latex", "html"]
"""Of a table as text; a whole page for `html` (`multistill.report.pages`)."""
Cell = str | int | float | None

LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells, each row as long as `columns`. None is an empty cell.

    Attributes:
        columns: titles; those of `numbers` are aligned to the right.
        numbers: titles of columns of figures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[str] = frozenset()


def to_csv(table: Table) -> str:
    """Comma-separated with a head, a line per row. Figures have all their digits."""
    text = io.StringIO()
    rows = [table.columns, *table.rows]
    csv.writer(text, lineterminator="\n").writerows([_line(cell) for cell in row] for row in rows)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A table of GitHub Flavored Markdown."""
    ruler = ["---:" if title in table.numbers else "---" for title in table.columns]
    head = [_markdown(title) for title in table.columns]
    rows = [head, ruler, *([_markdown(cell) for cell in row] for row in table.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _markdown(cell: Cell) -> str:
    return re.sub(r"([\\|`*_<>~&]|\](?=[(\[]))", r"\\\1", _line(cell))


def to_latex(table: Table) -> str:
    r"""A `tabular` of the package booktabs; everything that LaTeX would read is escaped.

    Not by pandas, whose `to_latex` leaves titles unescaped and raises at a brace in one.
    """
    alignment = "".join("r" if title in table.numbers else "l" for title in table.columns)
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", _latex_row(table.columns)]
    lines += [r"\midrule", *map(_latex_row, table.rows), r"\bottomrule", r"\end{tabular}"]
    return "".join(f"{line}\n" for line in lines)


def _latex_row(row: Sequence[Cell]) -> str:
    line = " & ".join(_line(cell).translate(LATEX) for cell in row)
    # After the `\\` of the line before, LaTeX takes a star or a bracket for an argument of it.
    return ("{}" if line.startswith(("*", "[")) else "") + line + r" \\"


def _line(cell: Cell) -> str:
    """The cell on one line."""
    return "" if cell is None else " ".join(str(cell).split())


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}


def to_terminal(table: Table, *, grouped: bool = False) -> RichTable:
    """A table of Rich; cells can have several lines.

    Args:
        grouped: rows with the same first cell form a group, which names it once.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    shown = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in table.columns:
        figures = name in table.numbers
        justify: Literal["left", "right"] = "right" if figures else "left"
        shown.add_column(name, justify=justify, no_wrap=figures, overflow="fold")
    before: Cell = None
    for number, row in enumerate(table.rows):
        cells = ["" if cell is None else str(cell) for cell in row]
        if grouped and number and row[0] == before:
            cells[0] = ""
        elif grouped and number:
            shown.add_section()
        before = row[0]
        shown.add_row(*cells)
    return shown
