"""The step that scores models on the test split, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.cluster.tasks import on_cluster
from multistill.config import JobConfig
from multistill.corpora.cross_corpus import TRAINED_ON
from multistill.pipeline.folds import folds_of, split_unit
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.steps.functionals import Functionals
from multistill.pipeline.steps.robustness import Robustness
from multistill.pipeline.steps.training import ModelStep
from multistill.tracking.logger import RunLogger
from multistill.workspace import Artifact, Workspace, clear, read_json


class Evaluate(Step):
    """Metrics of the majority baseline, other references and the models of some steps.

    Args:
        models: steps whose candidates are scored; without any, baseline and probes are.
    """

    name = "evaluate"
    artifact = "evaluation"
    version = 10
    sections = frozenset({"evaluation", "tasks"})
    uses_ray = True

    def __init__(
        self, job: JobConfig, workspace: Workspace, models: Sequence[ModelStep] = ()
    ) -> None:
        super().__init__(job, workspace)
        self.models = models

    def config(self) -> Any:
        return {**self.job.evaluation.identity(), "tasks": list(self.job.tasks.weights())}

    def reads(self) -> Sequence[str]:
        models = [step.artifact for step in self.models]
        read = [artifact for step in self.models for artifact in step.reads()]
        pack = [Robustness.artifact] if self.models and self.job.evaluation.robustness else []
        pack += [Functionals.artifact] if self.job.evaluation.opensmile else []
        return list(dict.fromkeys(["manifest", "features", *read, *models, *pack]))

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.evaluation.evaluate import EvaluatedFold, evaluate

        folds = []
        for fold in folds_of(run.artifacts):
            manifest = fold.artifacts["manifest"]
            for step in self.models:
                step.refuse_other_data(fold.artifacts)
            candidates = [
                candidate
                for step in self.models
                for candidate in step.candidates(fold.artifacts[step.artifact])
            ]
            name = manifest.summary.get("name", "")
            trained_on = manifest.summary.get(TRAINED_ON)
            repetition = manifest.summary.get("repetition", 0)
            folds.append(
                EvaluatedFold(
                    manifest.path,
                    candidates,
                    name,
                    trained_on=trained_on,
                    repetition=repetition,
                )
            )
        summary: Mapping[str, Any] = on_cluster(
            evaluate,
            folds,
            run.artifacts["features"].path,
            self.job.evaluation,
            clear(run.out),
            None,
            self.job.seed,
            split_unit(self.job),
            self.job.tasks.dimensions,
            self.job.tasks.classes is not None,
            self._inputs(run),
        )
        for name, figures in summary.get("headline", {}).items():
            run.logger.metrics(
                {f"test.{name}.{key}": value for key, value in figures.items() if value is not None}
            )
        for name, reason in summary.get("not_trained", {}).items():
            run.logger.info(f"{name}: {reason}")
        return summary

    def _inputs(self, run: StepRun) -> Any:
        from multistill.corpora.manifest import QUALITY
        from multistill.evaluation.human_ceiling import rated_corpora
        from multistill.evaluation.inputs import ReferenceInputs

        distorted = run.artifacts.get(Robustness.artifact)
        functionals = run.artifacts.get(Functionals.artifact)
        return ReferenceInputs(
            rated=rated_corpora(run.artifacts["manifest"].path / QUALITY),
            distorted=distorted.path if distorted else None,
            functionals=functionals.path if functionals else None,
        )

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        from multistill.evaluation.evaluate import METRICS
        from multistill.pipeline.record import (
            figures_table,
            floor_figures,
            label_share_figures,
            main_figures,
            robustness_figures,
        )

        metrics = read_json(artifact.path / METRICS)
        figures, best = main_figures(metrics)
        logger.metrics(figures)
        floor = metrics["floor"]
        logger.metrics(floor_figures(floor) | robustness_figures(metrics["robustness"]))
        for clips, gains in label_share_figures(metrics["label_shares"]):
            logger.metrics(gains, step=clips)
        logger.tags({"floor": floor["sentence"], **({"best_student": best} if best else {})})
        return f"{floor['sentence']}\n\n{figures_table(metrics)}"


class Probe(Evaluate):
    """Majority baseline and linear probes alone: what the features carry, before any head."""

    name = "probe"
