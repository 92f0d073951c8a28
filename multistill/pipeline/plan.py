"""What a run would do, for people and machines: stages, resources, trial concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multistill.config import JobConfig
from multistill.forecast.record import beside_truth
from multistill.forecast.text import forecast_by_stage, forecast_lines
from multistill.hardware import Resources
from multistill.pipeline.forecasts import forecast, kept_forecast, this_machine
from multistill.pipeline.notify import Notifier
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.scaling import forecast_at
from multistill.pipeline.stage_status import StageStatus, step_statuses
from multistill.pipeline.step import Artifacts, Step
from multistill.tracking import shown_address, tracking_problem
from multistill.wording import counted
from multistill.workspace import Artifact, Workspace

PATIENCE_SECONDS = 5.0
"""For the database of the records to answer."""


def describe(
    job: JobConfig, *, cluster: bool = False, hours: float | None = None, nodes: int | None = None
) -> dict[str, Any]:
    """The plan as JSON values.

    Starts nothing and writes nothing; looks at files, this machine and what the stages need
    outside the workspace. `problems` has what would stop the run; `forecast` is None where
    nothing was measured yet.

    Args:
        cluster: the job is to be submitted to one.
        hours, nodes: of another size that the forecast is of, all stages of it.

    Raises:
        UsageError: another size is asked for, and `prepare` has not run.
    """
    workspace = Workspace(job.workspace)
    statuses = step_statuses(steps_of(job, workspace), workspace)
    resources = this_machine(job)
    facts: dict[str, Any] = {
        "job": job.name,
        "recipe": job.recipe,
        "workspace": job.workspace,
        "tracking": shown_address(job.tracking, workspace.root),
        "ray": job.resources.address or "a local Ray on this machine",
        "resources": resources,
        "protocol": job.protocol.model_dump(mode="json"),
        "unlabelled": {corpus.title: None for corpus in job.corpora if corpus.unlabelled},
        "stages": [vars(entry) for _, entry, _ in statuses],
        "models": [],
        "problems": [],
    }
    for step, entry, _ in statuses:
        facts["problems"] += _problems(step, entry, workspace)
    if any(entry.state != "done" for _, entry, _ in statuses):
        problem = tracking_problem(job.tracking, workspace.root, PATIENCE_SECONDS)
        facts["problems"] += [problem] if problem else []
        facts["problems"] += Notifier(job.notify, None, print).problems()
    for step, entry, artifacts in statuses:
        if "manifest" in artifacts:
            facts["unlabelled"] |= artifacts["manifest"].summary.get("unlabelled", {})
        for key, value in step.plan(resources, artifacts).items():
            if isinstance(value, list):
                rows = [{"stage": step.name, "state": entry.state, **row} for row in value]
                facts[key] = [*facts.get(key, []), *rows]
            else:
                facts[key] = value
    left = [row["trainings"] for row in facts["models"] if row["state"] != "done"]
    facts["trainings"] = None if None in left else sum(left)
    steps = [step for step, _, _ in statuses]
    found = _found(workspace, statuses)
    if hours is not None or nodes is not None:
        facts["forecast"] = forecast_at(job, steps, found, resources, hours, nodes)
        return facts | {"forecast_and_truth": None}
    left = [entry.stage for _, entry, _ in statuses if entry.state != "done"]
    facts["forecast"] = _forecast(job, steps, found, left, resources, cluster)
    facts["forecast_and_truth"] = beside_truth(
        kept_forecast(job),
        [
            {"name": entry.stage, "seconds": entry.seconds}
            for _, entry, _ in statuses
            if entry.seconds is not None
        ],
    )
    return facts


def _forecast(
    job: JobConfig,
    steps: Sequence[Step],
    found: Artifacts,
    left: Sequence[str],
    resources: Resources,
    cluster: bool,
) -> dict[str, Any] | None:
    """Of the stages that are left; before `prepare` has run, what `plan --measure` kept."""
    if not left:
        return None
    if "manifest" not in found:
        return kept_forecast(job)
    return forecast(job, steps, found, left, resources, cluster=cluster)


def _found(
    workspace: Workspace, statuses: Sequence[tuple[Step, StageStatus, dict[str, Artifact]]]
) -> Artifacts:
    """Artifacts of the stages that are done."""
    return {
        step.artifact: artifact
        for step, entry, _ in statuses
        if entry.state == "done"
        and (artifact := workspace.find(step.kind, entry.fingerprint or "")) is not None
    }


def _problems(step: Step, entry: StageStatus, workspace: Workspace) -> Sequence[str]:
    """What would stop the run at this stage, or what of its artifact is beyond a limit."""
    if entry.state != "done":
        return step.problems()
    artifact = workspace.find(step.kind, entry.fingerprint or "")
    return step.over_limits(artifact) if artifact is not None else ()


def render(facts: dict[str, Any]) -> None:
    """Print the plan as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"job        {facts['job']} (recipe {facts['recipe']})")
    console.print(f"workspace  {facts['workspace']}", soft_wrap=True)
    console.print(f"tracking   {facts['tracking']}", soft_wrap=True)
    resources = facts["resources"]
    console.print(
        f"ray        {facts['ray']} ({resources['CPU']:g} logical CPUs, {resources['GPU']:g} GPUs)"
    )
    if text := _protocol(facts["protocol"]):
        console.print(f"tested     {text}")
    for title, counts in facts["unlabelled"].items():
        found = f", {counts['clips']} clips, {counts['hours']:.2f} h" if counts else ""
        console.print(f"unlabelled {title}{found}: for the students alone", soft_wrap=True)
    expected = forecast_by_stage(facts)
    titles = ("stage", "state", "fingerprint", "took", *(("forecast",) if expected else ()))
    stages = Table(*titles, box=None, pad_edge=False)
    for stage in facts["stages"]:
        took = "" if stage["seconds"] is None else f"{stage['seconds']:.0f} s"
        cells = [stage["stage"], stage["state"], stage["fingerprint"] or "", took]
        stages.add_row(*cells, *((expected.get(stage["stage"], ""),) if expected else ()))
    console.print()
    console.print(stages)
    console.print()
    for title, text in forecast_lines(facts):
        console.print(f"{title:<10} {text}", soft_wrap=True)
    if not facts["models"]:
        return
    titles = ("model", "trainings", "epochs", "batch", "rate", "workers", "stage")
    training = Table(*titles, box=None, pad_edge=False)
    for row in facts["models"]:
        training.add_row(
            row["model"],
            "by folds"
            if row["trainings"] is None
            else f"{row['trainings']}{' (done)' if row['state'] == 'done' else ''}",
            "by clips" if row["epochs"] is None else str(row["epochs"]),
            str(row["batch_size"]),
            f"{row['learning_rate']:g}",
            str(row["workers"]),
            row["stage"],
        )
    console.print()
    console.print(training)
    console.print()
    if facts["trainings"] is None:
        text = "those `by folds` are one per fold, which are known once `prepare` has run"
    else:
        text = (
            f"{facts['trainings']} to run at most; a model that the workspace already holds is not "
            "trained again"
        )
    console.print(f"trainings  {text}", soft_wrap=True)
    if any(row["epochs"] is None for row in facts["models"]):
        console.print(
            "epochs     those `by clips` are known once `prepare` has run", soft_wrap=True
        )
    search = facts.get("search")
    if search:
        together = search["concurrent"]
        console.print(
            f"search     {counted(search['trials'], 'trial')} {_where(search)}over "
            f"{', '.join(search['parameters'])} of `{search['student']}`, "
            + (f"{together} at a time" if together else "as many at a time as the cluster holds")
        )


def _protocol(protocol: dict[str, Any]) -> str:
    """The protocol in words; nothing for a holdout."""
    if protocol["kind"] == "cross-corpus":
        return "trained on each corpus, tested on all"
    if protocol["kind"] != "k-fold":
        return f"leaving one {protocol['by']} out" * (protocol["kind"] == "leave-one-out")
    folds, repeats = protocol["folds"], protocol["repeats"]
    again = f", drawn {repeats} times: {repeats * folds} in all" if repeats > 1 else ""
    return f"{folds} folds by {protocol['by']}{again}"


def _where(search: dict[str, Any]) -> str:
    """Nothing for a holdout, whose search is the only one."""
    if search["crossed"] and search["searches"] == 1:
        return "on the first fold "
    return {None: "in every fold ", 1: ""}.get(
        search["searches"], f"in each of {search['searches']} folds "
    )
