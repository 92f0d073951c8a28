"""Tables as text: any cell comes back, and nothing in it is read as markup."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from multistill.report.tables import FORMATS, Table, to_csv, to_latex, to_markdown, to_terminal

SPECIAL = "\\&%$#_{}~^|`*<>[]()\"',;=+-\n\r\t "
CELL = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8")), max_size=12)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.builds(
        Table,
        st.lists(CELL, min_size=width, max_size=width),
        st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=4),
    )
)
LATEX_NAMES = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    **{f"\\{character}": character for character in "&%$#_{}"},
}
LATEX_TOKEN = re.compile("|".join(map(re.escape, LATEX_NAMES)) + r"|[^&%$#_{}~^\\<>|]")


@given(TABLES)
def test_csv_is_read_back_as_it_was_on_one_line(table: Table) -> None:
    text = to_csv(table)
    assert len(text.split("\n")) == 2 + len(table.rows)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [[on_one_line(c) for c in row] for row in (table.columns, *table.rows)]


def on_one_line(cell: object) -> str:
    return " ".join(str(cell).split())


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-17, -3.0, 7, None, ""])
def test_csv_keeps_all_digits_of_a_figure(value: float | None) -> None:
    [_, [_, cell]] = csv.reader(io.StringIO(to_csv(Table(["a", "b"], [["x", value]]))))
    assert cell == ("" if value is None else str(value))


@given(TABLES)
def test_latex_has_the_cells_and_reads_none_of_them(table: Table) -> None:
    lines = to_latex(table).split("\n")[:-1]
    assert lines[0] == f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    assert (lines[1], lines[3], lines[-2]) == ("\\toprule", "\\midrule", "\\bottomrule")
    body = [lines[2], *lines[4:-2]]
    assert len(body) == 1 + len(table.rows)
    for line, row in zip(body, [table.columns, *table.rows], strict=True):
        assert line.endswith(r" \\") and not line.startswith(("*", "["))
        cells = line.removesuffix(r" \\").removeprefix("{}").split(" & ")
        assert [typeset(cell) for cell in cells] == [on_one_line(cell) for cell in row]


def typeset(cell: str) -> str:
    """What LaTeX sets of an escaped cell; fails at a character that it would read."""
    assert re.fullmatch(f"(?:{LATEX_TOKEN.pattern})*", cell), cell
    return LATEX_TOKEN.sub(lambda match: LATEX_NAMES.get(match[0], match[0]), cell)


@given(TABLES)
def test_markdown_has_a_line_per_row_and_as_many_cells(table: Table) -> None:
    lines = to_markdown(table).split("\n")[:-1]
    assert len(lines) == 2 + len(table.rows)
    for line, row in zip(lines[:1] + lines[2:], [table.columns, *table.rows], strict=True):
        cells = re.findall(r"(?:\\.|[^\\|])*(?=\|)", line[1:])
        cells = [cell for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line) if cell][: len(row)]
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == len(row) + 1
        for cell, content in zip(cells, row, strict=True):
            assert re.sub(r"\\(.)", r"\1", cell).strip() == on_one_line(content)


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_table_without_rows_has_its_head(kind: str) -> None:
    assert "figure" in FORMATS[kind](Table(["name", "figure"], [], frozenset({"figure"})))


def test_the_terminal_names_a_group_once() -> None:
    rows = [["a", "1"], ["a", "2"], ["b", "3"], ["a", "4"]]
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(to_terminal(Table(["run", "value"], rows), grouped=True))
    shown = [line.split() for line in console.export_text().splitlines()[2:] if line.strip()]
    assert shown == [["a", "1"], ["2"], ["b", "3"], ["a", "4"]]
