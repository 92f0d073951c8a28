"""Finished jobs in a workspace, as `multistill run` leaves them, of the small evaluated case."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.evaluation_case import EvaluationCase, make_job
from multistill.config import JobConfig
from multistill.corpora.manifest import with_classes
from multistill.pipeline.variants import job_file, variant_key
from multistill.report.compare import Run
from multistill.workspace import Workspace, read_json, write_atomic, write_json

Row = dict[str, Any]


def note_as_run(workspace: Path, **settings: Any) -> JobConfig:
    """The resolved job file that a run writes first."""
    job = make_job(workspace=str(workspace), **settings)
    key = variant_key(job.identity())
    write_atomic(job_file(workspace, job.name, key), job.to_yaml())
    return job


def finish(
    case: EvaluationCase,
    workspace: Path,
    change: Callable[[Row], Row | None] = lambda row: row,
    classes: Mapping[str, str] | None = None,
    metrics: Callable[[Row], Row] = lambda report: report,
    **settings: Any,
) -> JobConfig:
    """A job that was evaluated and has a report; both are those of the case, changed.

    Args:
        change: of the rows of predictions.parquet; None leaves a row out.
        classes: new names of classes.
        metrics: change of report.json.
        settings: of the job.
    """
    job, root = note_as_run(workspace, **settings), Workspace(workspace)
    key, classes = variant_key(job.identity()), classes or {}

    def evaluate(out: Path) -> None:
        table = pq.read_table(case.out / "predictions.parquet")
        rows = [changed for row in table.to_pylist() if (changed := change(row)) is not None]
        for row in rows:
            for column in ("label", "truth"):
                row[column] = classes.get(row[column], row[column])
        names = [classes.get(name, name) for name in case.metrics["classes"]]
        schema = table.schema.with_metadata(with_classes(names))
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "predictions.parquet")

    def report(out: Path) -> None:
        written, _ = case.default_report
        names = [classes.get(name, name) for name in written["classes"]]
        stages = [{"name": "evaluate", "fingerprint": key, "seconds": 1.0, "cached": False}]
        content = {**written, "job": job.name, "classes": names, "stages": stages}
        write_json(out / "report.json", metrics(content))
        shutil.copy(out / "report.json", out / "report.html")

    root.make("evaluate", key, evaluate)
    artifact = root.make(
        f"reports/{job.name}",
        key,
        report,
        config={"name": job.name, "job": job.identity()},
        provenance={"job": job.model_dump(mode="json")},
    )
    latest = artifact.path.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(artifact.path.name, target_is_directory=True)
    return job


def key_of(job: JobConfig) -> str:
    return variant_key(job.identity())


def report_of(workspace: Path, job: JobConfig) -> Path:
    return workspace / "reports" / job.name / key_of(job)


def run_of(folder: Path, name: str = "a", **more: Any) -> Run:
    """A run for `compare`, of a folder with report.json."""
    return Run(name, None, folder, read_json(folder / "report.json"), **more)
