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
    SubmitAddress,
    WorkspaceFolder,
    load_job,
    print_json,
    print_text,
)
from multistill.errors import UsageError

if TYPE_CHECKING:
    from multistill.cluster.slurm import SlurmRequest
    from multistill.config import JobConfig

SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="as printed by `submit`")]


def submit(
    job: JobFile,
    address: SubmitAddress = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the log")] = False,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="queue it with Slurm's sbatch, and do not follow the log"),
    ] = False,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Slurm: number of nodes")] = 1,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="LIMIT", help="Slurm: of an attempt, e.g. 8:00:00"),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="Slurm: where it runs")
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="NAME", help="Slurm: who pays")
    ] = None,
    gpus_per_node: Annotated[
        str | None,
        typer.Option("--gpus-per-node", metavar="[TYPE:]N", help="Slurm: GPUs of each node"),
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option("--cpus-per-node", min=1, help="Slurm: CPUs of each node")
    ] = None,
    save_before: Annotated[
        int | None,
        typer.Option(
            "--save-before",
            metavar="SECONDS",
            min=1,
            max=65535,
            help="Slurm: before the time limit, when the run saves and is queued again; "
            "default: 300",
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            "--array",
            metavar="seeds|KEY=V1,V2",
            help="Slurm: an array with a task for each seed of the job, or each value of a key",
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch",
            metavar="OPTION",
            help="Slurm: another option of sbatch, e.g. --sbatch=--constraint=a100",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Slurm: print the batch scripts, and write nothing")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="submit although the forecast exceeds `resources.allow`"),
    ] = False,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Run a job file on a Ray cluster, as a Ray job, or in Slurm's queue."""
    from multistill import cluster
    from multistill.cluster.address import SHARED
    from multistill.pipeline.drivers import LINKS
    from multistill.pipeline.running import submitted_links

    if slurm:
        from multistill.cluster.slurm import SAVE_BEFORE, SlurmRequest

        if no_wait:
            raise UsageError("--slurm never follows the log; leave --no-wait out")

        request = SlurmRequest(
            nodes=nodes,
            time=time,
            partition=partition,
            account=account,
            gpus_per_node=gpus_per_node,
            cpus_per_task=cpus_per_node,
            save_before=save_before or SAVE_BEFORE,
            options=tuple(sbatch or ()),
        )
        config = load_job(job, overrides, workspace, for_cluster=True)
        if not yes and not dry_run:
            _ask_if_beyond(config)
        _submit_to_slurm(config, request, array, dry_run=dry_run, as_json=as_json)
        return
    given = {
        "--nodes": nodes != 1,
        "--dry-run": dry_run,
        **{
            name: value is not None
            for name, value in {
                "--time": time,
                "--partition": partition,
                "--account": account,
                "--gpus-per-node": gpus_per_node,
                "--cpus-per-node": cpus_per_node,
                "--save-before": save_before,
                "--array": array,
                "--sbatch": sbatch,
            }.items()
        },
    }
    if alone := [name for name, is_given in given.items() if is_given]:
        raise UsageError(f"{alone[0]} is an option of Slurm's queue; add --slurm, or leave it out")
    if address is None:
        raise UsageError("say where the job runs: --address http://HEAD:8265, or --slurm")
    config = load_job(job, overrides, workspace, for_cluster=True)
    if not yes:
        _ask_if_beyond(config)
    print(f"multistill: {SHARED}", file=sys.stderr)
    submission = cluster.submit(config, address, wait=not no_wait)
    links = submitted_links(config, submission)
    if as_json:
        print_json({**submission.as_json(), "links": links})
    else:
        print(f"job {submission.submission_id}: {submission.status.lower()}")
        for name, title in LINKS.items():
            if links[name]:
                print(f"{title:<8} {links[name]}")
    raise typer.Exit(submission.exit_code)


def _submit_to_slurm(
    config: JobConfig, request: SlurmRequest, array: str | None, *, dry_run: bool, as_json: bool
) -> None:
    from multistill.cluster.slurm import scripts, submit_to_slurm
    from multistill.pipeline.parts import parts_of

    parts = parts_of(config, array)
    if dry_run:
        written = {str(path): text for path, text in scripts(config, request, parts).items()}
        if as_json:
            print_json({"scripts": written})
        else:
            print_text(
                "\n".join(
                    f"# {path}\n{text}" if len(written) > 1 else text
                    for path, text in written.items()
                )
            )
        return
    submission = submit_to_slurm(config, request, parts)
    if as_json:
        print_json(submission.as_json())
        return
    for name, job_id in submission.ids.items():
        print(f"job {job_id} ({name}): {'queued' if submission.submitted else 'queued already'}")
    for name, command in submission.commands().items():
        print(f"{name:<8} {command}")


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
