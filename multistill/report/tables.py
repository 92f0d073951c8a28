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

Format = Literal["csv", "markdown", "latex"]
Cell = str | int | float | None


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
    """RFC 4180 with a head and line feeds. Figures have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    writer.writerows([table.columns, *table.rows])
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A table of GitHub Flavored Markdown."""
    ruler = ["---:" if title in table.numbers else "---" for title in table.columns]
    head = [_markdown(title) for title in table.columns]
    rows = [head, ruler, *([_markdown(cell) for cell in row] for row in table.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _markdown(cell: Cell) -> str:
    return re.sub(r"([\\|`*_<>\[\]~])", r"\\\1", _line(cell))


def to_latex(table: Table) -> str:
    r"""A `tabular` of the package booktabs; everything that LaTeX would read is escaped."""
    import pandas

    frame = pandas.DataFrame([[_line(cell) for cell in row] for row in table.rows])
    frame = frame.reindex(columns=range(len(table.columns)))
    text = frame.to_latex(
        index=False,
        escape=True,
        header=[_line(title) for title in table.columns],
        column_format="".join("r" if title in table.numbers else "l" for title in table.columns),
    )
    # After `\\`, LaTeX takes a star or a bracket for an argument of it.
    return re.sub(r"^(?=[*\[])", "{}", str(text), flags=re.MULTILINE)


def _line(cell: Cell) -> str:
    """The cell on one line."""
    return "" if cell is None else " ".join(str(cell).split())


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}


def to_terminal(table: Table, title: str | None = None, caption: str | None = None) -> RichTable:
    """A table of Rich; cells can have several lines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    shown = RichTable(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name in table.columns:
        number = name in table.numbers
        shown.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in table.rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    return shown
