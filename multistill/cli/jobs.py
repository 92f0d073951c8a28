"""Commands for jobs on a Ray cluster: submit, status, logs, stop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from multistill.cli.options import (
    Address,
    JobFile,
    Json,
    Overrides,
    WorkspaceFolder,
    load_job,
    print_json,
)
from multistill.errors import UsageError

if TYPE_CHECKING:
    from multistill.config import JobConfig

SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="as printed by `submit`")]


def submit(
    job: JobFile,
    address: Address,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the log")] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="submit although the forecast exceeds `resources.allow`"),
    ] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Run a job file on a Ray cluster, as a Ray job."""
    from multistill import cluster

    config = load_job(job, overrides, workspace, for_cluster=True)
    if not yes:
        _ask_if_beyond(config)
    submission = cluster.submit(config, address, wait=not no_wait)
    if as_json:
        print_json(submission.as_json())
    else:
        print(f"job {submission.submission_id}: {submission.status.lower()}")
    raise typer.Exit(submission.exit_code)


def _ask_if_beyond(job: JobConfig) -> None:
    """Ask before a job is submitted whose forecast is beyond what it allows.

    Raises:
        UsageError: the answer is no, or nobody can be asked.
    """
    if not job.resources.allow.model_dump(exclude_none=True):
        return
    from multistill.forecast.limits import beyond
    from multistill.pipeline.plan import describe

    excess = "; ".join(beyond(job.resources.allow, describe(job, cluster=True)["forecast"]))
    if not excess:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"the job `{job.name}` may take more than it allows: {excess}; add --yes to submit it "
            "all the same, or change `resources.allow`"
        )
    print(f"{job.name}: {excess}", file=sys.stderr)
    if not typer.confirm("go on all the same?", err=True):
        raise UsageError(f"the job `{job.name}` was not submitted")


def status(submission: SubmissionId, address: Address, as_json: Json = False) -> None:
    """Show the state of a submitted job."""
    from multistill import cluster

    state = cluster.status(submission, address)
    if as_json:
        print_json(state)
    else:
        print(f"{submission}: {state['status'].lower()}  {state.get('message') or ''}".rstrip())


def logs(
    submission: SubmissionId,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="stream the log until the job ends")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the log of a submitted job."""
    from multistill import cluster

    parts: list[str] = []
    write = parts.append if as_json else cluster.write_out
    if follow:
        cluster.follow(submission, address, write)
    else:
        write(cluster.logs(submission, address))
    if as_json:
        print_json({"submission_id": submission, "log": "".join(parts)})


def stop(submission: SubmissionId, address: Address, as_json: Json = False) -> None:
    """Stop a submitted job; finished stages are kept."""
    from multistill import cluster

    stopped = cluster.stop(submission, address)
    if as_json:
        print_json({"submission_id": submission, "stopped": stopped})
    else:
        print(f"{submission}: {'stopping' if stopped else 'was not running'}")
