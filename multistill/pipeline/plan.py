"""What a run would do, for people and machines: stages, resources, trial concurrency."""

from __future__ import annotations

from typing import Any

from multistill.config import JobConfig, TrainConfig
from multistill.pipeline.runner import status as stage_statuses


def describe(job: JobConfig) -> dict[str, Any]:
    """The plan as JSON values. Starts nothing; looks at files and this machine only."""
    from multistill.search.capacity import concurrency, cores_fit

    here = _this_machine(job)
    facts: dict[str, Any] = {
        "job": job.name,
        "workspace": job.workspace,
        "tracking": job.tracking.uri or "a SQLite file in the workspace",
        "ray": job.resources.address or "a local Ray on this machine",
        "resources": here,
        "stages": [vars(stage) for stage in stage_statuses(job)],
        "models": [_training("teacher", job.teacher.train)]
        + [_training(student.name, student.train) for student in job.students],
    }
    if job.search.enabled:
        facts["search"] = {
            "student": job.searched_student().name,
            "trials": job.search.trials,
            "epochs": job.search.epochs or job.searched_student().train.epochs,
            "parameters": list(job.search.space),
            "concurrent": None
            if job.resources.address and job.search.concurrent is None
            else cores_fit(job.search, concurrency(job.search, here), [here]),
        }
    return facts


def _training(name: str, train: TrainConfig) -> dict[str, Any]:
    gpus = train.gpus_per_worker
    return {
        "model": name,
        "workers": train.workers,
        "cpus_per_worker": train.cpus_per_worker,
        "gpus_per_worker": "1 where there are GPUs" if gpus is None else gpus,
        "epochs": train.epochs,
    }


def _this_machine(job: JobConfig) -> dict[str, float]:
    """Resources of the local Ray that a run would start; GPUs as CUDA would show them."""
    from multistill.hardware import cores, local_cpus, local_gpus

    return {
        "CPU": float(job.resources.num_cpus or local_cpus()),
        "GPU": float(local_gpus() if job.resources.num_gpus is None else job.resources.num_gpus),
        "cores": float(cores()),
    }


def render(facts: dict[str, Any]) -> None:
    """Print the plan as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"job        {facts['job']}")
    console.print(f"workspace  {facts['workspace']}", soft_wrap=True)
    console.print(f"tracking   {facts['tracking']}", soft_wrap=True)
    resources = facts["resources"]
    console.print(
        f"ray        {facts['ray']} ({resources['CPU']:g} logical CPUs, {resources['GPU']:g} GPUs)"
    )
    stages = Table("stage", "state", "fingerprint", "took", box=None, pad_edge=False)
    for stage in facts["stages"]:
        took = "" if stage["seconds"] is None else f"{stage['seconds']:.0f} s"
        stages.add_row(stage["stage"], stage["state"], stage["fingerprint"] or "", took)
    console.print()
    console.print(stages)
    training = Table("model", "workers", "epochs", box=None, pad_edge=False)
    for row in facts["models"]:
        training.add_row(row["model"], str(row["workers"]), str(row["epochs"]))
    console.print()
    console.print(training)
    search = facts.get("search")
    if search:
        together = search["concurrent"]
        console.print()
        console.print(
            f"search     {search['trials']} trials of {search['epochs']} epochs over "
            f"{', '.join(search['parameters'])} of `{search['student']}`, "
            + (f"{together} at a time" if together else "as many at a time as the cluster holds")
        )
