"""`plan --measure`: encodes a few clips and trains a few epochs of a job, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multistill.config import JobConfig, ModelConfig, TrainSection
from multistill.forecast.estimate import Estimator
from multistill.forecast.keys import START, encoding_key, training_key, training_what
from multistill.forecast.rates import Rates
from multistill.pipeline.data_check import prepared
from multistill.pipeline.folds import folds_of
from multistill.pipeline.forecasts import counts_of, forecast, keep, machine_of, this_machine
from multistill.pipeline.stage_status import step_statuses
from multistill.pipeline.step import Artifacts, Step
from multistill.pipeline.steps.training import training_task
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.workspace import Artifact, Workspace


def measure(job: JobConfig, logger: RunLogger | None = None) -> None:
    """Measure what the stages that are left need, and keep rates and forecast in the workspace.

    Raises:
        UsageError, MultistillError: what would stop the run too: the corpora, an encoder, a task.
    """
    from multistill.pipeline.recipes import steps_of

    logger = logger or NullLogger()
    workspace = Workspace(job.workspace).open()
    steps = steps_of(job, workspace)
    statuses = step_statuses(steps, workspace)
    left = [entry.stage for _, entry, _ in statuses if entry.state != "done"]
    done = {
        step.artifact: found
        for step, entry, _ in statuses
        if entry.state == "done" and (found := workspace.find(step.kind, entry.fingerprint or ""))
    }
    with _manifest(job, done, logger) as manifest:
        artifacts = {"manifest": manifest, **done}
        resources = this_machine(job)
        with TemporaryDirectory(prefix="multistill-probe-") as folder:
            _measure(job, steps, artifacts, left, resources, Path(folder), logger)
        expected = forecast(job, steps, artifacts, left, resources)
    if expected is not None:
        keep(job, expected, left)


@contextmanager
def _manifest(
    job: JobConfig, done: Mapping[str, Artifact], logger: RunLogger
) -> Iterator[Artifact]:
    if "manifest" in done:
        yield done["manifest"]
        return
    with prepared(job, logger) as (_, manifest):
        yield manifest


def _measure(
    job: JobConfig,
    steps: Sequence[Step],
    artifacts: Artifacts,
    left: Sequence[str],
    resources: Mapping[str, float],
    folder: Path,
    logger: RunLogger,
) -> None:
    from multistill.features.statistics import compute_statistics
    from multistill.forecast import probe

    machine = machine_of(job, resources)
    rates, device = Rates(Workspace(job.workspace).root), machine.devices[-1]
    estimator = Estimator(rates, machine, counts_of(artifacts["manifest"]))
    first = folds_of(artifacts)[0].artifacts["manifest"]
    clips = _clips(first)
    features = artifacts.get("features")
    if features is None or "features" in left:
        logger.info(f"encoding {len(clips)} clips")
        together, gpus = estimator.encoders(job.features)
        manifest = _write(clips, len(clips), len(clips), folder / "clips", first)
        values, store = probe.measure_encoding(
            manifest.path / "manifest.parquet", job.features, folder, together, gpus > 0
        )
        rates.add(encoding_key(job), device, "encoding", "probe", values)
        features = Artifact("features", "", store, {"summary": _info(store)})
    settings = _settings(job)
    probes: dict[str, probe.TrainingProbe] = {}
    for step in steps:
        if step.name not in left:
            continue
        rows = list(step.plan(resources, artifacts).get("models", ()))
        tasks = sum(int(row["trainings"] or 0) for row in rows)
        for row in rows:
            key = row["rate"]
            if key in probes or key not in settings:
                continue
            title, role, model, train = settings[key]
            size = min(
                estimator.counts.train, max(probe.MIN_ROWS, probe.BATCHES * row["batch_size"])
            )
            manifest = _write(clips, size, max(8, size // 4), folder / f"rows-{size}", first)
            statistics = folder / f"statistics-{size}"
            if not statistics.exists():
                statistics.mkdir()
                compute_statistics(manifest.path / "manifest.parquet", features.path, statistics)
            task = training_task(
                job,
                {
                    "manifest": manifest,
                    "features": features,
                    "statistics": Artifact("statistics", "", statistics, {}),
                },
                title,
                role,
                model,
                train,
            )
            together, threads, _ = estimator.layout(row, tasks)
            probes[key] = probe.TrainingProbe(key, title, task, threads, together)
    if not probes:
        return
    logger.info(f"training {', '.join(each.title for each in probes.values())} for a few epochs")
    found, start = probe.measure_trainings(list(probes.values()), folder / "training")
    rates.add(START, device, "start of a worker", "probe", {"seconds": start})
    for key, values in found.items():
        title = f"training of {probes[key].title}"
        rates.add(training_what(key), device, title, "probe", values)


def _settings(job: JobConfig) -> dict[str, tuple[str, Any, ModelConfig, TrainSection]]:
    """Name, role, model and training by the key of its rate; others are known from runs only."""
    teacher = job.teacher
    named: list[tuple[str, str, ModelConfig, TrainSection]] = [
        (name, "teacher", model, teacher.train) for name, model in teacher.members.items()
    ]
    named += [(each.name, "control", each.model, each.train) for each in job.students]
    return {
        training_key(job, model, train): (name, role, model, train)
        for name, role, model, train in reversed(named)
    }


def _clips(manifest: Artifact) -> Any:
    """Training clips with a label, or with dimensions, of lengths as all have."""
    import pyarrow.compute as pc

    from multistill.corpora.manifest import read_manifest
    from multistill.forecast.probe import CLIPS, spaced

    rows = read_manifest(manifest.path)
    rows = rows.filter(pc.equal(rows["split"], "train"))
    labelled = rows.filter(pc.not_equal(pc.fill_null(rows["label"], ""), ""))
    rows = labelled if len(labelled) else rows
    return rows.take(spaced(rows["duration_s"].to_pylist(), CLIPS))


def _write(clips: Any, train: int, valid: int, out: Path, whole: Artifact) -> Artifact:
    """A manifest of the clips, repeated until there are as many rows as asked for.

    The counts in its summary are those of the whole corpus, which decide the epochs.
    """
    import numpy as np
    import pyarrow as pa

    from multistill.corpora.manifest import write_manifest

    unique = train == valid == len(clips)
    if not (out / "manifest.parquet").exists():
        out.mkdir(parents=True)
        parts = ["train"] * train + ([] if unique else ["valid"] * valid)
        rows = clips.take(np.arange(len(parts)) % len(clips))
        place = rows.schema.get_field_index("split")
        column = pa.array(parts, type=rows.schema.field("split").type)
        write_manifest(rows.set_column(place, rows.schema.field("split"), column), out)
    return Artifact("manifest", "", out, {"summary": {"splits": whole.summary["splits"]}})


def _info(store: Path) -> dict[str, Any]:
    from multistill.features.store import INFO
    from multistill.workspace import read_json

    found: dict[str, Any] = read_json(store / INFO)
    return found
