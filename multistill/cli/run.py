"""Commands that read a job file: demo, run, plan, validate, and the search commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multistill.cli.options import (
    JobFile,
    Json,
    NotifyCommand,
    Overrides,
    WorkspaceFolder,
    load_job,
    print_json,
)
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.wording import counted

if TYPE_CHECKING:
    from multistill.config import JobConfig
    from multistill.pipeline import Outcome

STAGES = (
    "prepare",
    "features",
    "statistics",
    "copies",
    "pretrain",
    "teacher",
    "distill",
    "students",
    "label_shares",
    "search",
    "continual",
    "forgetting",
    "functionals",
    "robustness",
    "evaluate",
    "report",
    "probe",
)
"""Stages for the help of `--until`, optional ones too: the recipes' in the order in which they
run."""

Name = Annotated[
    str,
    typer.Argument(metavar="JOB", help="name of a job that ran in the workspace, or a job file"),
]


VariantKey = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="FINGERPRINT",
        help="which job of that name, where several ran: the start of its fingerprint",
    ),
]


def demo(
    workspace: WorkspaceFolder = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run the packaged job on the packaged SYNTHETIC corpus."""
    with resources.as_file(resources.files("multistill") / "jobs" / "demo.yaml") as job:
        _run(load_job(job, overrides, workspace), until=None, as_json=as_json)


def run(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.yaml]", help="the job file, unless --from")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="STAGE",
            help=f"stop after this stage: {', '.join(STAGES)} (`plan` lists those of a job)",
            autocompletion=lambda: STAGES,
        ),
    ] = None,
    recorded: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN_ID",
            help="repeat the job that MLflow recorded in this run, or in one above it, in a "
            "workspace of your own (default: ./workspace)",
        ),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            "--tracking",
            metavar="URI",
            help="with --from: where that run is (default: MLFLOW_TRACKING_URI, else the "
            "workspace)",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="with --from: refuse other versions and data than recorded, and end with 1 if the "
            "figures differ",
        ),
    ] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    notify_command: NotifyCommand = None,
    as_json: Json = False,
) -> None:
    """Run a job file, or repeat a recorded job, skipping stages whose artifacts exist."""
    if recorded is not None:
        if job is not None:
            raise UsageError(f"--from repeats a recorded job; leave out the job file `{job}`")
        _repeat(recorded, tracking, strict, overrides, workspace, until, notify_command, as_json)
        return
    if job is None:
        raise UsageError("there is nothing to run; give a job file, or a recorded run with --from")
    if tracking is not None or strict:
        option = "--strict" if tracking is None else "--tracking"
        raise UsageError(f"{option} belongs to --from; name a recorded run, or leave it out")
    _run(load_job(job, overrides, workspace), until=until, as_json=as_json, command=notify_command)


def _repeat(
    run_id: str,
    tracking: str | None,
    strict: bool,
    overrides: Sequence[str] | None,
    workspace: str | None,
    until: str | None,
    command: str | None,
    as_json: bool,
) -> None:
    from multistill import pipeline
    from multistill.config import TrackingConfig
    from multistill.pipeline.repeat import Repetition
    from multistill.tracking import tracking_uri
    from multistill.tracking.console import ProgressDisplay
    from multistill.tracking.recorded import recorded_run

    folder = Path(workspace or "workspace")
    uri = tracking_uri(TrackingConfig(uri=tracking), folder.expanduser().absolute())
    repetition = Repetition(recorded_run(uri, run_id), strict)
    display = ProgressDisplay()
    display.print(f"repeating {repetition.recorded.name} of {repetition.recorded.owner}")
    display.print(repetition.describe_versions())
    job = repetition.job(overrides or (), folder)
    outcome = pipeline.run(
        job, until=until, display=display, notify_command=command, repeats=repetition
    )
    if as_json:
        print_json(outcome.as_json())
    else:
        _show(outcome)
    assert outcome.repeated is not None
    if strict and outcome.repeated.here and not outcome.repeated.equal:
        raise MultistillError(outcome.repeated.sentence())


def plan(
    job: JobFile,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="encode a few clips and train a few epochs here first, for the forecast",
        ),
    ] = False,
    hours: Annotated[
        float | None,
        typer.Option("--hours", min=0.01, help="forecast of so many hours of such audio"),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, help="forecast on so many machines like this one"),
    ] = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Show stages, what is cached, resources, a forecast; only --measure starts anything."""
    from multistill.pipeline.plan import describe, render

    config = load_job(job, overrides, workspace)
    if measure:
        from multistill.pipeline.probing import measure as measure_rates
        from multistill.tracking.console import ConsoleLogger, ProgressDisplay

        display = ProgressDisplay()
        try:
            measure_rates(config, ConsoleLogger(display, config.name))
        finally:
            display.clear()
    facts = describe(config, hours=hours, nodes=nodes)
    if as_json:
        print_json(facts)
    else:
        render(facts)
    if facts["problems"]:
        raise UsageError("; ".join(facts["problems"]))


def validate(
    job: JobFile,
    data: Annotated[
        bool, typer.Option("--data", help="also read the corpora and count; no stage runs")
    ] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Check a job file and report all problems with their line numbers."""
    from multistill.encoders.preflight import missing_weights

    try:
        config = load_job(job, overrides, workspace)
        if missing := list(missing_weights(config.features)):
            raise JobFileError(str(job), [(None, sentence) for sentence in missing])
    except JobFileError as error:
        if not as_json:
            raise
        problems = [{"line": line, "problem": text} for line, text in error.problems]
        print_json({"valid": False, "file": error.source, "problems": problems})
        raise typer.Exit(2) from None
    from multistill.pipeline.jobfile import notes

    noted = notes(config)
    facts = None
    if data:
        from multistill.pipeline import data_check
        from multistill.tracking.console import ConsoleLogger, ProgressDisplay

        display = ProgressDisplay()
        try:
            facts = data_check.check_data(config, ConsoleLogger(display, config.name))
        finally:
            display.clear()
    if as_json:
        counts = {} if facts is None else {"data": facts}
        print_json({"valid": True, "file": str(job), "problems": [], "notes": noted, **counts})
        return
    print(f"{job}: valid (job `{config.name}`)")
    for note in noted:
        print(f"note: {note}")
    for line in [] if facts is None else data_check.describe(facts):
        print(line)


def resume(
    name: Name,
    variant: VariantKey = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    notify_command: NotifyCommand = None,
    as_json: Json = False,
) -> None:
    """Continue a job whose search was interrupted; finished trials are kept."""
    from multistill.pipeline import searches

    job, _ = _job_called(name, variant, overrides, workspace)
    _run(searches.resumed(job), until=None, as_json=as_json, command=notify_command)


def extend(
    name: Name,
    trials: Annotated[int, typer.Option("--trials", min=1, help="how many more")],
    variant: VariantKey = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    notify_command: NotifyCommand = None,
    as_json: Json = False,
) -> None:
    """Add trials to a job's finished search; the sampler continues from all earlier trials."""
    from multistill.pipeline import searches

    job, called = _job_called(name, variant, overrides, workspace)
    _run(
        searches.extended(job, trials, called), until=None, as_json=as_json, command=notify_command
    )


def join(
    name: Name,
    variant: VariantKey = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Run trials of a search that another process started, until none is left."""
    from multistill.pipeline import searches

    job, called = _job_called(name, variant, overrides, workspace)
    ended = searches.join(job, called)
    if as_json:
        print_json({"job": job.name, "trials": ended})
    else:
        print(f"this process finished {counted(ended, 'trial')} of `{job.name}`")


def _run(job: JobConfig, *, until: str | None, as_json: bool, command: str | None = None) -> None:
    from multistill import pipeline

    outcome = pipeline.run(job, until=until, notify_command=command)
    if as_json:
        print_json(outcome.as_json())
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from multistill.pipeline.drivers import LINKS
    from multistill.report.files import DATA_PAGE

    console = Console(highlight=False, markup=False, emoji=False)
    if outcome.report is not None:
        from multistill.report.terminal import table

        report = json.loads((outcome.report / "report.json").read_text(encoding="utf-8"))
        console.print(table(report))
        if report["continual"]:
            from multistill.report.continual import table as continual_table

            console.print()
            console.print(continual_table(report["continual"]))
        console.print(f"report   {outcome.report / 'report.html'}", soft_wrap=True)
    else:
        last = list(outcome.stages.values())[-1]
        console.print(f"{last.kind}   {last.path}", soft_wrap=True)
        prepared = outcome.stages.get("prepare")
        if prepared is not None:
            console.print(f"data     {prepared.path / DATA_PAGE}", soft_wrap=True)
    for name, title in LINKS.items():
        if link := outcome.links[name]:
            console.print(f"{title:<8} {link}", soft_wrap=True)
    if outcome.repeated is not None:
        console.print(f"repeated {outcome.repeated.sentence()}", soft_wrap=True)
    console.print(f"{outcome.seconds:.0f} s")


def _job_called(
    name: str, variant: str | None, overrides: Sequence[str] | None, workspace: str | None
) -> tuple[JobConfig, list[str]]:
    """The job of a file, or the one of that name that ran in the workspace.

    Returns:
        the job, and the arguments that name it again: those given, with the variant that was
        asked for.
    """
    options = [part for override in overrides or () for part in ("--set", override)]
    options += [] if workspace is None else ["--workspace", workspace]
    if name.endswith((".yaml", ".yml")):
        if variant is not None:
            raise UsageError(
                f"--variant picks one of the jobs that ran under a name, and `{name}` is a job "
                "file; leave it out, or give the job's name"
            )
        return load_job(Path(name), overrides, workspace), [name, *options]
    from multistill.pipeline.variants import choose, describe_variants, find_variants

    folder = Path(workspace or "workspace")
    if variant is None and sys.stdin.isatty() and sys.stderr.isatty():
        variants = find_variants(folder, name)
        if len(variants) > 1:
            print(f"{len(variants)} variants of `{name}` ran in {folder}:", file=sys.stderr)
            for number, line in enumerate(describe_variants(variants), 1):
                print(f"  {number}  {line}", file=sys.stderr)
            number = typer.prompt("which one", type=int, err=True)
            if 1 <= number <= len(variants):
                chosen = variants[number - 1]
                job = load_job(chosen.file, overrides, workspace)
                return job, [name, "--variant", chosen.key, *options]
    job = load_job(choose(folder, name, variant).file, overrides, workspace)
    return job, [name, *([] if variant is None else ["--variant", variant]), *options]
