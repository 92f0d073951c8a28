"""Runs of two steps that compute nothing, so that everything around a run can be tested alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from multistill.pipeline import runner
from multistill.pipeline.step import Step, StepRun
from multistill.tracking.logger import RunLogger
from multistill.tracking.registry import DATA_TAG
from multistill.workspace import Artifact


class Data(Step):
    """The data are the content of the first corpus's file."""

    name = "prepare"
    artifact = "manifest"

    def config(self) -> Any:
        return [corpus.identity() for corpus in self.job.corpora]

    def build(self, run: StepRun) -> Mapping[str, Any]:
        path = self.job.corpora[0].path
        return {"data": Path(path).read_text() if path else "demo"}

    def data_digest(self, artifact: Artifact) -> str:
        return str(artifact.summary["data"])

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        logger.tags({DATA_TAG: self.data_digest(artifact)})
        return ""


class Scores(Step):
    """Its figures, and what happens while it works, are set by a test."""

    name = "evaluate"
    artifact = "evaluation"
    figures: Mapping[str, float] = {}
    work: Callable[[StepRun], object] = staticmethod(lambda run: None)

    def config(self) -> Any:
        return {"seed": self.job.seed}

    def reads(self) -> Sequence[str]:
        return ("manifest",)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        type(self).work(run)
        return {"figures": dict(self.figures)}

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        logger.metrics(artifact.summary["figures"])
        logger.tags({"best_student": "audio"})
        return ""


FIGURES = {
    "test_teacher_macro_f1": 0.7,
    "test_best_student_macro_f1": 0.65,
    "test_best_student_macro_f1_low": 0.6,
    "test_majority_macro_f1": 0.1,
    "test_teacher_macro_f1_above_probe": 0.05,
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every run of this test make these two steps."""
    monkeypatch.setattr(runner, "steps_of", lambda job, root: [Data(job, root), Scores(job, root)])
    monkeypatch.setattr(Scores, "figures", FIGURES)


def workspace(folder: Path, database: Path) -> Path:
    """A workspace with an MLflow database that needs no migration."""
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    return folder


def runs_of(uri: str, job: str = "small") -> list[Any]:
    """All runs of a job in MLflow, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(job)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return sorted(found, key=lambda run: run.info.start_time)
