"""The step that scores models on the test split, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.cluster.tasks import on_cluster
from multistill.config import JobConfig
from multistill.pipeline.folds import folds_of
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.steps.training import ModelStep
from multistill.tracking.logger import RunLogger
from multistill.workspace import Artifact, Workspace, clear, read_json


class Evaluate(Step):
    """Metrics of the majority baseline, the linear probes and the models of some steps.

    Args:
        models: steps whose candidates are scored; without any, baseline and probes are.
    """

    name = "evaluate"
    artifact = "evaluation"
    version = 7
    sections = frozenset({"evaluation"})
    uses_ray = True

    def __init__(
        self, job: JobConfig, workspace: Workspace, models: Sequence[ModelStep] = ()
    ) -> None:
        super().__init__(job, workspace)
        self.models = models

    def config(self) -> Any:
        return self.job.evaluation.identity()

    def reads(self) -> Sequence[str]:
        models = [step.artifact for step in self.models]
        read = [artifact for step in self.models for artifact in step.reads()]
        return list(dict.fromkeys(["manifest", "features", *read, *models]))

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.evaluation.evaluate import EvaluatedFold, evaluate

        folds = []
        for fold in folds_of(run.artifacts):
            manifest = fold.artifacts["manifest"]
            for step in self.models:
                models = fold.artifacts[step.artifact].summary["models"]
                step.model_store.refuse_other_data(models, step.inputs(fold.artifacts))
            candidates = [
                candidate
                for step in self.models
                for candidate in step.candidates(fold.artifacts[step.artifact])
            ]
            name = manifest.summary.get("name", "")
            repetition = manifest.summary.get("repetition", 0)
            folds.append(EvaluatedFold(manifest.path, candidates, name, repetition))
        protocol = self.job.protocol
        summary: Mapping[str, Any] = on_cluster(
            evaluate,
            folds,
            run.artifacts["features"].path,
            self.job.evaluation,
            clear(run.out),
            None,
            self.job.seed,
            protocol.by if protocol.crosses and protocol.by != "corpus" else self.job.split.by,
        )
        for name, figures in summary.get("headline", {}).items():
            run.logger.metrics(
                {f"test.{name}.{key}": value for key, value in figures.items() if value is not None}
            )
        for name, reason in summary.get("not_trained", {}).items():
            run.logger.info(f"{name}: {reason}")
        return summary

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        from multistill.evaluation.evaluate import METRICS
        from multistill.pipeline.record import (
            figures_table,
            floor_figures,
            label_share_figures,
            main_figures,
        )

        metrics = read_json(artifact.path / METRICS)
        figures, best = main_figures(metrics)
        logger.metrics(figures)
        floor = metrics["floor"]
        logger.metrics(floor_figures(floor))
        for clips, gains in label_share_figures(metrics["label_shares"]):
            logger.metrics(gains, step=clips)
        logger.tags({"floor": floor["sentence"], **({"best_student": best} if best else {})})
        return f"{floor['sentence']}\n\n{figures_table(metrics)}"


class Probe(Evaluate):
    """Majority baseline and linear probes alone: what the features carry, before any head."""

    name = "probe"
