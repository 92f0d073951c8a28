"""The `multistill` command. Thin: each command reads its arguments and calls one function.

Nothing heavy is imported here; commands import what they need when they run, so that
`multistill --help` answers at once. Progress goes to standard error, results to
standard output. Exit codes: 0 done, 1 failed, 2 wrong use or wrong job file.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multistill.errors import JobFileError, MultistillError, UsageError

if TYPE_CHECKING:
    from multistill.config import JobConfig
    from multistill.pipeline.runner import Outcome

app = typer.Typer(
    name="multistill",
    help="Encode speech once, train a teacher, distil and search small students, judge honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
search_app = typer.Typer(help="Continue, extend or join a search.", no_args_is_help=True)
app.add_typer(search_app, name="search")

Job = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="the job file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a value, e.g. --set search.trials=40; several may follow one --set",
    ),
]
WorkspaceFolder = Annotated[
    str | None, typer.Option("--workspace", metavar="PATH", help="where artifacts are kept")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Address = Annotated[
    str,
    typer.Option(
        "--address", metavar="ADDR", envvar="RAY_ADDRESS", help="Ray head, e.g. http://HEAD:8265"
    ),
]


def _load(
    job: Path,
    overrides: Sequence[str] | None,
    workspace: str | None,
    *,
    for_cluster: bool = False,
) -> JobConfig:
    from multistill.pipeline import jobfile

    extra = [] if workspace is None else [f"workspace={json.dumps(workspace)}"]
    return jobfile.load(job, [*(overrides or []), *extra], for_cluster=for_cluster)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def demo(
    workspace: WorkspaceFolder = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the packaged job on the packaged SYNTHETIC corpus; nothing to prepare."""
    with resources.as_file(resources.files("multistill") / "jobs" / "demo.yaml") as job:
        _run(_load(job, overrides, workspace), until=None, as_json=as_json)


@app.command()
def run(
    job: Job,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="stop after this stage")
    ] = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job file: every stage that is not there yet."""
    _run(_load(job, overrides, workspace), until=until, as_json=as_json)


def _run(job: JobConfig, *, until: str | None, as_json: bool) -> None:
    from multistill import pipeline

    if until is not None:
        _check_stage(until)
    outcome = pipeline.run(job, until=until)
    if as_json:
        _print_json(outcome.as_json())
    else:
        _show(outcome)


def _check_stage(name: str) -> None:
    import difflib

    from multistill.pipeline.stages import STAGES

    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"the stages are {', '.join(STAGES)}"
        raise UsageError(f"--until {name}: there is no such stage; {hint}")


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if outcome.report is not None:
        from multistill.report.terminal import table

        report = json.loads((outcome.report / "report.json").read_text(encoding="utf-8"))
        console.print(table(report))
        console.print(f"report   {outcome.report / 'report.html'}", soft_wrap=True)
    else:
        last = list(outcome.stages.values())[-1]
        console.print(f"{last.kind}   {last.path}", soft_wrap=True)
    if outcome.tracking_uri:
        console.print(
            f"mlflow   {outcome.tracking_uri}   "
            f"(to look: mlflow ui --backend-store-uri {outcome.tracking_uri})"
            if outcome.tracking_uri.startswith("sqlite:")
            else f"mlflow   {outcome.tracking_uri}",
            soft_wrap=True,
        )
    console.print(f"{outcome.seconds:.0f} s")


@app.command()
def plan(
    job: Job,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show stages, what is cached, resources and trial concurrency; start nothing."""
    from multistill.pipeline.plan import describe, render

    facts = describe(_load(job, overrides, workspace))
    if as_json:
        _print_json(facts)
    else:
        render(facts)


@app.command()
def validate(
    job: Job,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a job file: every problem at once, each with its line."""
    try:
        config = _load(job, overrides, workspace)
    except JobFileError as error:
        if not as_json:
            raise
        problems = [{"line": line, "problem": text} for line, text in error.problems]
        _print_json({"valid": False, "file": error.source, "problems": problems})
        raise typer.Exit(2) from None
    if as_json:
        _print_json({"valid": True, "file": str(job), "problems": []})
    else:
        print(f"{job}: valid (job `{config.name}`)")


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> None:
    """List the model presets with their trainable parameters."""
    from multistill.models.catalogue import catalogue, render

    rows = catalogue()
    if as_json:
        _print_json(rows)
    else:
        render(rows)


@app.command()
def doctor(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]")] = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check machine, Ray, GPU, disk, encoders and tracking server: what is wrong, and the fix."""
    from multistill.doctor import examine, render

    findings = examine(_load(job, overrides, workspace) if job else None)
    if as_json:
        _print_json([finding.as_json() for finding in findings])
    else:
        render(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def submit(
    job: Job,
    address: Address,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the log")] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job file on a Ray cluster, as a Ray job."""
    from multistill import cluster

    config = _load(job, overrides, workspace, for_cluster=True)
    done = cluster.submit(config, address, wait=not no_wait)
    if as_json:
        _print_json(done.as_json())
    else:
        print(f"job {done.submission_id}: {done.status.lower()}")
    raise typer.Exit(done.exit_code)


@app.command()
def status(
    submission: Annotated[str, typer.Argument(metavar="ID")],
    address: Address,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """State of a submitted job."""
    from multistill import cluster

    state = cluster.status(submission, address)
    if as_json:
        _print_json(state)
    else:
        print(f"{submission}: {state['status'].lower()}  {state.get('message') or ''}".rstrip())


@app.command()
def logs(
    submission: Annotated[str, typer.Argument(metavar="ID")],
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job ends")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Log of a submitted job."""
    from multistill import cluster

    if as_json:
        text = "".join(cluster.logs(submission, address, follow=follow))
        _print_json({"submission_id": submission, "log": text})
        return
    for text in cluster.logs(submission, address, follow=follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
def stop(
    submission: Annotated[str, typer.Argument(metavar="ID")],
    address: Address,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop a submitted job; what it finished is kept."""
    from multistill import cluster

    stopped = cluster.stop(submission, address)
    if as_json:
        _print_json({"submission_id": submission, "stopped": stopped})
    else:
        print(f"{submission}: {'stopping' if stopped else 'was not running'}")


Run = Annotated[str, typer.Argument(metavar="RUN", help="a job's name, or its job file")]


@search_app.command()
def resume(
    run_name: Run,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a job whose search was cut short; finished trials stay."""
    _run(_earlier(run_name, overrides, workspace), until=None, as_json=as_json)


@search_app.command()
def extend(
    run_name: Run,
    trials: Annotated[int, typer.Option("--trials", min=1, help="how many more")],
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Add trials to a job's search; it goes on from what it has learnt."""
    from multistill import pipeline

    job = _earlier(run_name, overrides, workspace)
    state = {stage.stage: stage.state for stage in pipeline.status(job)}
    if state.get("search") != "done":
        raise UsageError(
            f"the search of `{job.name}` is not finished, so nothing is added to it; "
            f"first run `multistill search resume {run_name}`"
        )
    larger = job.search.model_copy(update={"trials": job.search.trials + trials})
    _run(job.model_copy(update={"search": larger}), until=None, as_json=as_json)


@search_app.command()
def join(
    run_name: Run,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Help with a search that runs elsewhere: take trials of it until none is left."""
    from multistill import pipeline

    job = _earlier(run_name, overrides, workspace)
    ended = pipeline.join(job)
    if as_json:
        _print_json({"job": job.name, "trials": ended})
    else:
        print(f"{ended} trials of `{job.name}` ended here")


def _earlier(run_name: str, overrides: Sequence[str] | None, workspace: str | None) -> JobConfig:
    """The job of a file, or the newest one of that name that ran in the workspace."""
    if run_name.endswith((".yaml", ".yml")):
        return _load(Path(run_name), overrides, workspace)
    folder = Path(workspace or "workspace") / "jobs"
    named = re.compile(re.escape(run_name) + r"-[0-9a-f]{16}\.yaml")
    files = [path for path in folder.glob("*.yaml") if named.fullmatch(path.name)]
    found = sorted(files, key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(
            f"no job called `{run_name}` has run in `{folder.parent}`; give its job file, or the "
            "right folder with --workspace"
        )
    return _load(found[-1], overrides, workspace)


def _several_after_set(arguments: Sequence[str]) -> list[str]:
    """`--set a=1 b=2` means `--set a=1 --set b=2`; Typer takes one value per option."""
    found: list[str] = []
    after_set = False
    for argument in arguments:
        if after_set and found[-1] != "--set" and "=" in argument and argument[0] != "-":
            found.append("--set")
        elif argument.startswith("-"):
            after_set = argument == "--set"
        found.append(argument)
    return found


def _cause(error: BaseException) -> BaseException:
    """Our own error inside what Ray wrapped around it, else the error itself.

    Ray's wrapper may be an instance of our class too, with a remote traceback as its text:
    what it names as its cause comes first.
    """
    seen: BaseException | None = error
    for _ in range(8):
        inner = getattr(seen, "cause", None)
        if isinstance(inner, BaseException):
            seen = inner
        elif seen is None or isinstance(seen, MultistillError):
            break
        else:
            seen = seen.__cause__
    return seen if isinstance(seen, MultistillError) else error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    arguments = _several_after_set(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("MULTISTILL_DEBUG"))
    command = typer.main.get_command(app)
    try:
        with command.make_context("multistill", list(arguments)) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("multistill: interrupted; run the same command to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor flush at exit
        code = 141
    except Exception as error:
        if debug:
            raise
        known = _cause(error)
        if isinstance(known, MultistillError):
            print(f"multistill: {known}", file=sys.stderr)
            code = known.exit_code
        elif hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong use of the command
            error.show()
            code = error.exit_code
        else:
            first = (str(error).strip().splitlines() or [""])[0]
            print(
                f"multistill: unexpected {type(error).__name__}: {first}; "
                "run the command again with --debug to see where",
                file=sys.stderr,
            )
            code = 1
    raise SystemExit(code)
