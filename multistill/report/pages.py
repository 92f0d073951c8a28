"""Tables as one HTML page in the style of report.html, which opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from multistill import provenance
from multistill.report.cell_labels import label_cells
from multistill.report.environment import environment
from multistill.report.tables import Cell, Table


@dataclass(frozen=True)
class Block:
    """A table of a page and what stands around it.

    Attributes:
        grouped: rows with the same first cell form a group, whose name is that cell.
        links: address per row for the cell that names the row; None for none.
        figure: an SVG above the table.
        note: a sentence below the table.
    """

    title: str
    table: Table
    grouped: bool = False
    links: Sequence[str | None] = ()
    figure: Markup | None = None
    note: str = ""

    @property
    def groups(self) -> list[tuple[Cell, list[tuple[str | None, Sequence[Cell]]]]]:
        """The rows as (link, cells) by group; all in one group without a name if not grouped."""
        links = list(self.links) or [None] * len(self.table.rows)
        found: list[tuple[Cell, list[tuple[str | None, Sequence[Cell]]]]] = []
        for link, row in zip(links, self.table.rows, strict=True):
            name, cells = (row[0], row[1:]) if self.grouped else (None, row)
            if not found or found[-1][0] != name:
                found.append((name, []))
            found[-1][1].append((link, cells))
        return found

    @property
    def columns(self) -> Sequence[str]:
        return self.table.columns[1:] if self.grouped else self.table.columns


@dataclass(frozen=True)
class Page:
    """Title, tables and sentences of a page.

    Attributes:
        kicker: what kind of page it is, in small letters above the title.
        lead: the first paragraph.
        warnings: title and text of each, above the tables.
        notes: sentences below the tables.
    """

    title: str
    kicker: str
    lead: str
    blocks: Sequence[Block]
    warnings: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def to_html(page: Page) -> str:
    """The page as one string, without references to external resources."""
    template = environment().get_template("tables.html")
    return label_cells(
        template.render(page=page, figure=figure_cell, version=provenance.versions()["multistill"])
    )


def figure_cell(cell: Cell) -> Markup:
    """A cell of figures: what stands before a bracket or `SD` in bold, the rest small."""
    text = "" if cell is None else str(cell)
    starts = [at for at in (text.find(" ["), text.find(" SD ")) if at >= 0]
    if not starts:
        return Markup("<b>{}</b>").format(text) if text else Markup("")
    return Markup('<b>{}</b> <span class="ci">{}</span>').format(
        text[: min(starts)], text[min(starts) + 1 :]
    )
