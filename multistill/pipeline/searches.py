"""Continuing, extending and joining the search of a job: `multistill search ...`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.runner import terminated_as_interrupt
from multistill.pipeline.stage_status import StageStatus, step_statuses
from multistill.pipeline.steps.search import Search
from multistill.tracking.console import ConsoleLogger, ProgressDisplay
from multistill.workspace import Workspace


def resumed(job: JobConfig) -> JobConfig:
    """The job, whose search continues where it was interrupted.

    Raises:
        UsageError: the job has no search.
    """
    _search_of(job)
    return job


def extended(job: JobConfig, trials: int, called: Sequence[str] = ()) -> JobConfig:
    """The job with so many more trials; its search continues from the finished one.

    Args:
        called: the command line's arguments that name the job (name, `--workspace`, ...), for
            commands in messages; default: its name.

    Raises:
        UsageError: the search is not finished.
    """
    search = _search_of(job)
    if search.state != "done":
        raise UsageError(
            f"the search of `{job.name}` is not finished, so nothing is added to it; "
            f"first run `multistill search resume {shlex.join(called or [job.name])}`"
        )
    larger = job.search.model_copy(update={"trials": job.search.trials + trials})
    return job.model_copy(update={"search": larger})


def join(
    job: JobConfig, called: Sequence[str] = (), *, display: ProgressDisplay | None = None
) -> int:
    """Run trials of a search that another process started, until none is left to start.

    Nothing else of the job is made here, and nothing is recorded: the other process does both.

    Args:
        called: as of `extended`.

    Returns:
        how many trials ended here.

    Raises:
        UsageError: the job has no search that could be joined.
    """
    from multistill import cluster
    from multistill.search import study
    from multistill.search.spec import SPEC

    display = display or ProgressDisplay()
    search, workspace = _search_of(job), Workspace(job.workspace)
    if search.state == "done":
        raise UsageError(
            f"the search of `{job.name}` has ended, so there is nothing to join; "
            f"`multistill search extend {shlex.join(called or [job.name])} --trials N` adds trials"
        )
    folder = search.fingerprint and workspace.partial(Search.name, search.fingerprint)
    # Under cross-validation the folds have searches of their own, one after another.
    folders = [folder, *sorted(folder.glob("folds/*"))] if folder else []
    started = [each for each in folders if (each / SPEC).exists()]
    if not started:
        raise UsageError(
            f"no search of `{job.name}` is running in {workspace.root}; start it with "
            "`multistill run`, then join it with the same job and workspace"
        )
    nested = job.search.workers_per_trial > 1
    with (
        terminated_as_interrupt(),
        cluster.start(job.resources, dashboard=nested, log=display.print),
    ):
        return study.join(started[-1], ConsoleLogger(display, job.name), job.search)


def _search_of(job: JobConfig) -> StageStatus:
    workspace = Workspace(job.workspace)
    for step, entry, _ in step_statuses(steps_of(job, workspace), workspace):
        if isinstance(step, Search):
            return entry
    raise UsageError(
        f"the job `{job.name}` has no search: its recipe is `{job.recipe}` and "
        f"{'its `search` is off' if not job.search.enabled else 'that recipe has none'}; add a "
        "`search` section to a job of the recipe `distillation`"
    )
