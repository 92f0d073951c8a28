"""Commands for jobs on a Ray cluster: submit, status, logs, stop."""

from __future__ import annotations

import sys
from typing import Annotated

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

SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="as printed by `submit`")]


def submit(
    job: JobFile,
    address: Address,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the log")] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Run a job file on a Ray cluster, as a Ray job."""
    from multistill import cluster
    from multistill.cluster.address import SHARED

    config = load_job(job, overrides, workspace, for_cluster=True)
    print(f"multistill: {SHARED}", file=sys.stderr)
    submission = cluster.submit(config, address, wait=not no_wait)
    if as_json:
        print_json(submission.as_json())
    else:
        print(f"job {submission.submission_id}: {submission.status.lower()}")
    raise typer.Exit(submission.exit_code)


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
