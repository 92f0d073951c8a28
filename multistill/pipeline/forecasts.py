"""The forecast of a job: what its stages will take, from rates that were measured before."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from multistill.config import JobConfig
from multistill.errors import MultistillError
from multistill.forecast.estimate import Counts, Estimator, Machine, StageForecast
from multistill.forecast.keys import encoding_key, stage_what, training_what
from multistill.forecast.rates import KEPT, Rates, device_name
from multistill.forecast.record import (
    forecast_file,
    keep_forecast,
    read_forecast,
    summarize,
)
from multistill.hardware import Resources
from multistill.pipeline.folds import folds_of
from multistill.pipeline.step import Artifacts, Step
from multistill.pipeline.variants import variant_key
from multistill.training.model_store import HISTORY, KIND
from multistill.workspace import DONE, Artifact, Workspace, read_json

CLUSTER = "the cluster"
"""Device of the rates that jobs with `resources.address` measure: a workspace has one cluster."""


def machine_of(job: JobConfig, resources: Resources, *, cluster: bool = False) -> Machine:
    """Where the job will run, as far as this machine can know.

    Of a cluster that this process is connected to, these are the nodes; of another, a single one
    that has what the job waits for.

    Args:
        resources: of this machine's Ray.
        cluster: the job is to be submitted to one.
    """
    cores = int(resources["cores"])
    here = {name: value for name, value in resources.items() if name in ("CPU", "GPU")}
    if job.resources.address is None and not cluster:
        return Machine([here], cores, [device_name()])
    nodes = _connected_nodes()
    if not nodes:
        node = {**here, **job.resources.wait_for}
        node["CPU"] = max(node["CPU"], node.get("GPU", 0.0))
        nodes = [node]
    return Machine(nodes, max(cores, int(nodes[0]["CPU"])), [CLUSTER, device_name()])


def _connected_nodes() -> list[dict[str, float]]:
    """CPUs and GPUs of the nodes of the connected cluster that have any."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return []
    from multistill.cluster.nodes import cluster_nodes

    try:
        nodes = cluster_nodes()
    except Exception:  # a forecast is no reason to end a run whose cluster has just gone
        return []
    return [
        {name: node.get(name, 0.0) for name in ("CPU", "GPU")} for node in nodes if node.get("CPU")
    ]


def counts_of(manifest: Artifact) -> Counts:
    """Clips and seconds of a manifest; the parts are those of its first fold."""
    import pyarrow.compute as pc

    from multistill.corpora.manifest import read_manifest

    folds = folds_of({"manifest": manifest})
    splits = folds[0].artifacts["manifest"].summary.get("splits", {})
    rows = read_manifest(manifest.path, ["duration_s"])
    return Counts(
        clips=len(rows),
        audio_seconds=float(pc.sum(rows["duration_s"]).as_py() or 0.0),
        train=int(splits.get("train", 0)) + int(splits.get("unlabelled", 0)),
        valid=int(splits.get("valid", 0)),
        test=int(splits.get("test", 0)),
        folds=len(folds),
    )


def forecast(
    job: JobConfig,
    steps: Sequence[Step],
    artifacts: Artifacts,
    left: Sequence[str],
    resources: Resources,
    *,
    cluster: bool = False,
    estimator: Estimator | None = None,
) -> dict[str, Any] | None:
    """The forecast of the stages that are left; None without any rate of encoding or training.

    Args:
        artifacts: the manifest among them.
        left: names of the stages that are still to run.
        resources: of this machine's Ray.
        estimator: of other counts or another machine than the job's own.
    """
    if estimator is None:
        machine = machine_of(job, resources, cluster=cluster)
        rates = Rates(Path(steps[0].workspace.root))
        estimator = Estimator(rates, machine, counts_of(artifacts["manifest"]))
    stages: list[StageForecast] = []
    rows_left: list[Mapping[str, Any]] = []
    encoding = encoding_key(job)
    models = 0
    for step in steps:
        facts = step.plan(resources, artifacts)
        rows = list(facts.get("models", ()))
        models += sum(
            int(row["trainings"] or 0) for row in rows if not row["model"].endswith(_NOT_SCORED)
        )
        if step.name not in left:
            continue
        rows_left += rows
        if step.name == "features":
            stages.append(estimator.encoding(job.features, encoding))
        elif step.name == "search":
            stages.append(estimator.search(job.search, rows[0], rows[1:]))
        elif rows:
            stages.append(estimator.training(step.name, rows))
        else:
            stages.append(estimator.other(step.name, models))
    if not any(rate.title.startswith(("encoding", "training")) for rate in estimator.used.values()):
        return None
    keys = sorted({row["rate"] for row in rows_left})
    return summarize(
        stages,
        estimator,
        estimator.memory(encoding, keys),
        estimator.checkpoint_bytes(rows_left),
        job.resources.price,
    )


_NOT_SCORED = ("-fold", "-trial")
"""Ends of the names of trainings whose models `evaluate` does not score."""


def kept_forecast(job: JobConfig) -> dict[str, Any] | None:
    """The forecast that was made before the job ran, or by `plan --measure`."""
    return read_forecast(_file(job))


def keep(job: JobConfig, found: Mapping[str, Any], left: Sequence[str]) -> None:
    """Keep a forecast for the report, and for a `plan` after the run."""
    keep_forecast(_file(job), found, left)


def _file(job: JobConfig) -> Path:
    return forecast_file(Workspace(job.workspace).root, job.name, variant_key(job.identity()))


def keep_missing(
    job: JobConfig, steps: Sequence[Step], artifacts: Artifacts, left: Sequence[str]
) -> None:
    """Before a stage: a forecast of those that have none, from what was measured so far.

    A run goes on without one: nothing may be measured, or the workspace be full.
    """
    before = kept_forecast(job)
    if "manifest" not in artifacts or (before is not None and not before["missing"]):
        return
    with suppress(OSError, MultistillError):
        found = forecast(job, steps, artifacts, left, this_machine(job))
        if found is None:
            return
        stages = before["stages"] if before else []
        known = {entry["stage"]: entry for entry in stages if entry["seconds"] is not None}
        found["stages"] = [known.get(entry["stage"], entry) for entry in found["stages"]]
        keep(job, found, left)


def this_machine(job: JobConfig) -> dict[str, float]:
    """Resources of the local Ray that a run would start; GPUs as CUDA would show them."""
    from multistill.hardware import cores, local_cpus, local_gpus

    return {
        "CPU": float(job.resources.num_cpus or local_cpus()),
        "GPU": float(local_gpus() if job.resources.num_gpus is None else job.resources.num_gpus),
        "cores": float(cores()),
    }


def learn(job: JobConfig, steps: Sequence[Step], step: Step, artifacts: Artifacts) -> None:
    """Keep the rates that a stage has shown, for forecasts of later jobs.

    Args:
        artifacts: of the steps so far, that of `step` among them.
    """
    if "manifest" not in artifacts:
        return
    resources = this_machine(job)
    rates = Rates(step.workspace.root)
    machine = machine_of(job, resources)
    device = machine.devices[0]
    artifact = artifacts[step.artifact]
    rows = list(step.plan(resources, artifacts).get("models", ()))
    with suppress(OSError, MultistillError):
        estimator = Estimator(rates, machine, counts_of(artifacts["manifest"]))
        if step.name == "features":
            _learn_encoding(job, rates, device, estimator, artifact)
        elif rows:
            _learn_trainings(step, rates, device, estimator, artifact, rows)
        else:
            before = steps[: steps.index(step)]
            models = sum(
                int(row["trainings"] or 0)
                for each in before
                for row in each.plan(resources, artifacts).get("models", ())
                if not row["model"].endswith(_NOT_SCORED)
            )
            units = estimator.units(step.name, models)
            values = {"seconds_per_unit": artifact.seconds / max(units, 1e-9)}
            rates.add(stage_what(step.name), device, f"stage {step.name}", "run", values)


def _learn_encoding(
    job: JobConfig, rates: Rates, device: str, estimator: Estimator, artifact: Artifact
) -> None:
    summary = artifact.summary
    if not summary["audio_seconds"]:
        return
    audio = float(summary["audio_seconds"])
    values = {
        "seconds_per_audio_second": float(summary["seconds"]) / audio,
        "bytes_per_audio_second": float(summary["bytes"]) / audio,
        "peak_bytes": float(summary["worker_peak_bytes"]),
    }
    rates.add(encoding_key(job), device, "encoding", "run", values)
    working = float(summary["seconds"]) / estimator.encoders(job.features)[0]
    overhead = {"overhead_seconds": max(0.0, artifact.seconds - working)}
    rates.add(stage_what("features"), device, "stage features", "run", overhead)


def _learn_trainings(
    step: Step,
    rates: Rates,
    device: str,
    estimator: Estimator,
    artifact: Artifact,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Rates of the trainings that this stage ran, and its seconds beyond their epochs."""
    names = sorted((row["model"] for row in rows), key=len, reverse=True)
    by_name = {row["model"]: row for row in rows}
    working: dict[str, list[float]] = {}
    measured: dict[str, list[dict[str, float]]] = {}
    for name, entry in artifact.summary["models"].items():
        of = next((known for known in names if name.startswith(known)), None)
        folder = step.workspace.folder(KIND, str(entry["fingerprint"]))
        if of is None or not _made_by(artifact, folder):
            continue
        history = read_json(folder / HISTORY)
        values = _epochs_of(history, int(by_name[of]["workers"]))
        if values is None:
            continue
        size = (folder / "model.safetensors").stat().st_size
        values |= {"model_bytes": float(size)}
        measured.setdefault(of, []).append(values)
        working.setdefault(of, []).append(sum(epoch["seconds"] for epoch in history["epochs"]))
    for of, entries in measured.items():
        for values in entries[-KEPT:]:
            what = training_what(by_name[of]["rate"])
            rates.add(what, device, f"training of {of}", "run", values)
    if not working or step.name == "search":
        return
    count = sum(map(len, working.values()))
    seconds = sum(
        sum(each) / estimator.layout(by_name[of], count)[0] for of, each in working.items()
    )
    overhead = {"overhead_seconds": max(0.0, artifact.seconds - seconds)}
    rates.add(stage_what(step.name), device, f"stage {step.name}", "run", overhead)


def _made_by(artifact: Artifact, folder: Path) -> bool:
    """Whether a model was made while the artifact was: others were found in the workspace."""
    from datetime import datetime, timedelta

    made = datetime.fromisoformat(read_json(folder / DONE)["created"])
    ended = datetime.fromisoformat(artifact.meta["created"])
    return made >= ended - timedelta(seconds=artifact.seconds + 2)


def _epochs_of(history: Mapping[str, Any], workers: int) -> dict[str, float] | None:
    """Seconds per row and worker; the first epoch, which allocates memory, does not count."""
    from statistics import median

    epochs, rows = history["epochs"][1:], int(history["train_rows"])
    if not epochs or not rows:
        return None
    train = [rows / epoch["samples_per_second"] for epoch in epochs]
    valid = [epoch["seconds"] - each for epoch, each in zip(epochs, train, strict=True)]
    return {
        "train_seconds_per_row": workers * median(train) / rows,
        "valid_seconds_per_row": workers
        * max(0.0, median(valid))
        / max(1, int(history["valid_rows"])),
    }
