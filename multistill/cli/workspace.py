"""The command that frees space in a workspace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multistill.cli.options import Json, print_json
from multistill.wording import counted

if TYPE_CHECKING:
    from multistill.pipeline.garbage import Garbage, Item

SHOWN = 20
"""Paths on the terminal, the largest; `--json` has all."""


def gc(
    workspace: Annotated[
        Path, typer.Option("--workspace", metavar="PATH", help="where the jobs ran")
    ] = Path("workspace"),
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="only what was last written before that: 7d, 12h, 30m, 0",
        ),
    ] = "7d",
    forget: Annotated[
        list[str] | None,
        typer.Option(
            "--forget",
            metavar="JOB",
            help="a job, NAME or NAME@FINGERPRINT, that goes with its reports and all that only it "
            "needs; repeat it for several",
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete/--dry-run", help="delete it; default: show what would go")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what of a workspace no job needs, with sizes, and delete it with --delete."""
    from multistill.pipeline import garbage

    age, forget = garbage.seconds_of(older_than), forget or []
    if delete:
        found, items = garbage.delete(workspace, age, forget)
    else:
        found = garbage.find_garbage(workspace, age, forget)
        items = found.items
    if as_json:
        print_json(
            {
                "deleted": delete,
                "bytes": sum(item.bytes for item in items),
                "items": [
                    {"kind": i.kind, "path": str(i.path), "bytes": i.bytes, "why": i.why}
                    for i in items
                ],
                "kept": [{"path": str(path), "why": why} for path, why in found.kept.items()],
                "incomplete": found.incomplete,
            }
        )
    else:
        _show(found, items, delete)


def _show(found: Garbage, items: list[Item], deleted: bool) -> None:
    from rich.console import Console

    from multistill.report.tables import Table, to_terminal

    console = Console(highlight=False, markup=False, emoji=False)
    if items:
        number, size = Counter(i.kind for i in items), Counter[str]()
        for item in items:
            size[item.kind] += item.bytes
        rows = [[kind, f"{number[kind]:,}", _size(size[kind])] for kind in sorted(number)]
        rows.append(["together", f"{len(items):,}", _size(size.total())])
        columns = ["kind", "number", "size"]
        console.print(to_terminal(Table(columns, rows, frozenset(columns[1:]))))
        console.print()
        for item in sorted(items, key=lambda item: -item.bytes)[:SHOWN]:
            console.print(f"{_size(item.bytes):>9}  {item.path}  {item.why}", soft_wrap=True)
        if len(items) > SHOWN:
            console.print(f"           and {len(items) - SHOWN:,} more: --json lists all")
    why = Counter(found.kept.values())
    for path, reason in list(found.kept.items())[:SHOWN]:
        if why[reason] <= SHOWN:
            console.print(f"kept       {path}  {reason}", soft_wrap=True)
    for reason, many in why.items():
        if many > SHOWN:
            console.print(f"kept       {counted(many, 'path')}: {reason}", soft_wrap=True)
    for job, reason in found.incomplete.items():
        console.print(f"incomplete {job}: {reason}", soft_wrap=True)
    if not items:
        console.print("nothing to delete")
    elif deleted:
        console.print("deleted")
    else:
        console.print("nothing was deleted; the same command with --delete does it")


def _size(number: int) -> str:
    """`1.2 GB`, in powers of ten as disks are sold."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
