"""Commands that show what jobs have found: the list of a workspace, jobs side by side, models."""

from __future__ import annotations

import functools
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from multistill.cli.options import Json, Overrides, load_job, print_json, print_text
from multistill.errors import UsageError

WATCH_SECONDS = 5.0


class Format(StrEnum):
    """Text formats of a table."""

    csv = "csv"
    markdown = "markdown"
    latex = "latex"
    html = "html"


TextFormat = Annotated[
    Format | None,
    typer.Option(
        "--format", help="print text for a sheet, a page, a paper (booktabs), or a browser"
    ),
]
Folder = Annotated[
    Path,
    typer.Option("--workspace", metavar="PATH", help="where the jobs ran"),
]


def runs(
    workspace: Folder = Path("workspace"),
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDR",
            help="list the jobs of this Ray job server instead, e.g. http://HEAD:8265",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="show it again every few seconds until Ctrl-C")
    ] = False,
    text_format: TextFormat = None,
    as_json: Json = False,
) -> None:
    """List who runs what: owner, state, progress, links; and main test scores."""
    _one_of(text_format, as_json)
    if watch and (text_format is not None or as_json):
        raise UsageError("--watch shows a table on the terminal; leave out --json and --format")
    if address is not None and text_format is not None:
        raise UsageError("--format is for the jobs of a workspace; use --json with --address")
    show = functools.partial(_show_cluster, address) if address else _show_runs
    if not watch:
        show(workspace, text_format, as_json)
        return
    from rich.console import Console

    console = Console()
    with suppress(KeyboardInterrupt):
        while True:
            console.clear()
            show(workspace, None, False)
            time.sleep(WATCH_SECONDS)


def _show_cluster(address: str, workspace: Path, _: Format | None, as_json: bool) -> None:
    from multistill.pipeline.running import link_lines, on_cluster, running_table
    from multistill.report.tables import to_terminal

    rows = on_cluster(address, workspace)
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"no job was submitted to {address}")
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(to_terminal(running_table(rows)))
    failed = [f"{row['submission_id']}  {row['reason']}" for row in rows if row["reason"]]
    for line in [*link_lines(rows), *failed]:
        console.print(line, soft_wrap=True)


def _show_runs(workspace: Path, text_format: Format | None, as_json: bool) -> None:
    from multistill.pipeline.running import link_lines, running_table
    from multistill.pipeline.runs import flat_table, list_runs, page, report_lines, terminal_table

    rows = list_runs(workspace)
    if as_json:
        print_json(rows)
        return
    from multistill.report.tables import FORMATS, to_terminal

    if text_format is not None:
        html = text_format is Format.html
        text = page(rows, workspace) if html else FORMATS[text_format](flat_table(rows))
        print_text(text, html=html)
        return
    if not rows:
        print(f"no job has run in {workspace}")
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if running := [row for row in rows if row["state"] == "running"]:
        console.print(to_terminal(running_table(running)))
        for line in link_lines(running):
            console.print(line, soft_wrap=True)
        console.print()
    console.print(to_terminal(terminal_table(rows)))
    for line in report_lines(rows):
        console.print(line, soft_wrap=True)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="a report's folder or report.json, or a job of the workspace: NAME, or "
            "NAME@FINGERPRINT where several have the name; differences are to the first",
        ),
    ],
    workspace: Folder = Path("workspace"),
    text_format: TextFormat = None,
    as_json: Json = False,
) -> None:
    """Lay finished jobs side by side, with paired differences where their test clips agree."""
    _one_of(text_format, as_json)
    from multistill.pipeline.runs import find_run
    from multistill.pipeline.variants import differing
    from multistill.report.compare import compare as compare_runs

    found = [find_run(name, workspace) for name in names]
    facts = compare_runs(found, differing([run.settings for run in found if run.settings]))
    if as_json:
        print_json(facts)
        return
    from multistill.report import side_by_side

    if text_format is not None:
        print_text(side_by_side.text(facts, text_format.value), html=text_format is Format.html)
        return
    from rich.console import Console

    side_by_side.show(facts, Console(highlight=False, markup=False, emoji=False))


def evaluate(
    source: Annotated[
        str,
        typer.Option(
            "--all",
            metavar="PATH|EXPERIMENT",
            help="a folder with model folders below it, e.g. workspace/models, or an MLflow "
            "experiment",
        ),
    ],
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="JOB",
            help="whose test clips and features: a job file, or a job of the workspace; default: "
            "the one that ran last",
        ),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option("--fold", help="of a cross-validated job, from 1: whose test part"),
    ] = None,
    overrides: Overrides = None,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", metavar="PATH", help="default: the job file's, or ./workspace"),
    ] = None,
    text_format: TextFormat = None,
    as_json: Json = False,
) -> None:
    """Score every model of a folder or an MLflow experiment on the test clips of one job."""
    _one_of(text_format, as_json)
    from multistill.pipeline.checkpoints import evaluate_all, find_job
    from multistill.tracking.console import ConsoleLogger, ProgressDisplay

    place = (workspace or Path("workspace")).absolute()
    file = find_job(job, place)
    own = workspace is None and not file.is_relative_to(place)  # a job file says where it ran
    config = load_job(file, overrides, None if own else str(place))
    display = ProgressDisplay()
    try:
        facts = evaluate_all(source, config, fold, ConsoleLogger(display, "evaluate"))
    finally:
        display.clear()
    if as_json:
        print_json(facts)
        return
    from multistill.report import checkpoints
    from multistill.report.tables import to_terminal

    if text_format is not None:
        print_text(checkpoints.text(facts, text_format.value), html=text_format is Format.html)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(to_terminal(checkpoints.terminal_table(facts)))
    console.print()
    for line in checkpoints.notes(facts):
        console.print(line)


def _one_of(text_format: Format | None, as_json: bool) -> None:
    if text_format is not None and as_json:
        raise UsageError("--json and --format are two formats of the same result; leave one out")


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder that a job wrote")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    as_json: Json = False,
) -> None:
    """Write a trained model with its weights in 8 bits: a quarter of the size."""
    from multistill.inference.quantize import quantize as write

    before, size = write(model, out)
    if as_json:
        print_json({"model": str(out), "bytes": size, "bytes_before": before})
    else:
        print(f"{out}: {size / 1e6:.2f} MB, was {before / 1e6:.2f} MB")
