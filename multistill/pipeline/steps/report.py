"""The step that writes report.html and report.json from all artifacts of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.pipeline.folds import parts_of
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.steps.label_shares import LabelShares
from multistill.tracking.logger import RunLogger
from multistill.training.model_store import ModelStore
from multistill.workspace import Artifact, atomic_path, clear, file_name, read_json


class Report(Step):
    """The report shows whichever artifacts the recipe made."""

    name = "report"
    artifact = "report"
    version = 9
    sections = frozenset({"report"})

    @property
    def kind(self) -> str:
        return f"reports/{file_name(self.job.name)}"

    def config(self) -> Any:
        return {
            "name": self.job.name,
            "job": self.job.identity(),
            "report": self.job.report.identity(),
        }

    def reads(self) -> Sequence[str]:
        forgetting = ("forgetting",) * (self.job.recipe == "continual")
        return ("evaluation", *forgetting)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.forecast.record import beside_truth
        from multistill.pipeline.forecasts import kept_forecast
        from multistill.report.build import write_report

        model_store = ModelStore(self.workspace)
        histories: dict[str, Any] = {}
        for name, artifact in run.artifacts.items():
            if name != LabelShares.artifact:  # too many to look at
                # Of a cross-validation, the first fold.
                histories |= model_store.histories(parts_of(artifact)[0].summary.get("models", {}))
        write_report(
            clear(run.out),
            job=self.job,
            artifacts=run.artifacts,
            histories=histories,
            stages=run.stages,
            forecast=beside_truth(
                kept_forecast(self.job), [s for s in run.stages if not s["cached"]]
            ),
        )
        return {}

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        from multistill.report.files import HTML, JSON

        for name in (HTML, JSON):
            logger.artifact(artifact.path / name, "report")
        titles = [warning["title"] for warning in read_json(artifact.path / JSON)["warnings"]]
        warnings = f" Its warnings: {', '.join(titles)}." if titles else ""
        return f"The report is the artifact `report/{HTML}`.{warnings}"

    def publish(self, artifact: Artifact) -> Path:
        """Point `reports/<job>/latest` at this report; a reader never finds the link missing."""
        latest = artifact.path.parent / "latest"
        if not (latest.is_symlink() and latest.resolve() == artifact.path.resolve()):
            with atomic_path(latest, concurrent=True) as temporary:
                temporary.symlink_to(artifact.path.name, target_is_directory=True)
        return latest
