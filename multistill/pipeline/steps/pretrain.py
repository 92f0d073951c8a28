"""Branches of a `va-fusion` that are trained for one dimension each, and the teacher on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multistill.cluster.tasks import on_cluster
from multistill.config import JobConfig, TrainSection
from multistill.hardware import Resources
from multistill.models.branches import BRANCHES, branch_spec
from multistill.models.presets import resolve
from multistill.pipeline.folds import folds_of
from multistill.pipeline.step import Artifacts, StepRun
from multistill.pipeline.steps.training import (
    ModelStep,
    Teacher,
    planned_training,
    training_clips,
    training_inputs,
)
from multistill.tracking.logger import RunLogger
from multistill.training.defaults import resolve_training
from multistill.training.model_store import VERSION, Index
from multistill.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate
    from multistill.models.spec import ModelSpec
    from multistill.training.task import TrainingTask

NETWORK = "va-fusion"
_METRICS = ("ccc", "rmse")

_INSTEAD = (
    "let the branches of the teacher predict another dimension than `{}` "
    "(`va_audio_dimension`, `va_text_dimension`)"
)


def fusions(job: JobConfig) -> dict[str, ModelSpec]:
    """Specs of the teacher's models that have branches, by name."""
    specs = {
        name: resolve(model.preset, model.overrides())
        for name, model in job.teacher.members.items()
    }
    return {name: spec for name, spec in specs.items() if spec.network == NETWORK}


def branch_training(job: JobConfig, modality: str) -> TrainSection:
    """The section of a branch."""
    section: TrainSection = getattr(job.pretrain, modality)
    return section


class Pretrain(ModelStep):
    """A model per branch, seed and left-out fold of the teacher's.

    A teacher that leaves out a fold for its soft targets stands on branches that left it out too.
    """

    name = "pretrain"
    artifact = "pretrained"
    sections = frozenset({"pretrain", "teacher", "distillation", "seeds"})

    def __init__(self, job: JobConfig, workspace: Workspace) -> None:
        super().__init__(job, workspace)
        self.teacher = Teacher(job, workspace)

    def config(self) -> Any:
        return {
            "pretrain": self.job.pretrain.identity(),
            "branches": {
                name: [branch_spec(spec, modality).to_dict() for modality in BRANCHES]
                for name, spec in fusions(self.job).items()
            },
            "seed": self.job.seed,
            "seeds": [self.job.seeds, self.job.teacher.seeds],
            "targets": self.job.distillation.targets,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return training_inputs(self.job)

    def preflight(self, artifacts: Artifacts) -> None:
        """Refuse a dimension without values in a part."""
        if "manifest" not in artifacts:
            return
        from multistill.corpora.dimensions import refuse_unlearnable

        dimensions = dict.fromkeys(
            branch_spec(spec, modality).dimensions[0]
            for spec in fusions(self.job).values()
            for modality in BRANCHES
        )
        for fold in folds_of(artifacts):
            number = None if fold.number is None else fold.number + 1
            path = fold.artifacts["manifest"].path
            refuse_unlearnable(path, list(dimensions), number, _INSTEAD)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.evaluation.dimension_scores import dimension_scores

        summary = self.train(self.tasks, run)
        index: Index = summary["models"]
        scores = {}
        for modality in BRANCHES:
            for member in fusions(self.job):
                of_folds = []
                for fold in folds_of(run.artifacts):
                    [first, *_] = self.teacher.repeated(
                        [self.branch(member, modality, fold.artifacts)], fold.artifacts
                    )
                    folder = self.model_store.folder(index[fold.model_name(first.name)])
                    of_folds.append((str(fold.artifacts["manifest"].path), str(folder)))
                scores[f"{member}-{modality}"] = on_cluster(
                    dimension_scores, of_folds, str(run.artifacts["features"].path)
                )
        for name, values in scores.items():
            found = {f"test.{name}.{metric}": values[metric] for metric in _METRICS}
            run.logger.metrics({key: value for key, value in found.items() if value is not None})
        return {**summary, "scores": scores}

    def tasks(self, artifacts: Artifacts) -> list[TrainingTask]:
        return [
            task
            for member in fusions(self.job)
            for modality in BRANCHES
            for task in self.teacher.repeated([self.branch(member, modality, artifacts)], artifacts)
        ]

    def branch(
        self, member: str, modality: Literal["audio", "text"], artifacts: Artifacts
    ) -> TrainingTask:
        """The training of a branch of a teacher's model on all training rows."""
        fusion = self.teacher.members(artifacts)[member]
        preset = self.job.teacher.members[member].preset
        section = branch_training(self.job, modality)
        train = resolve_training(section, preset, training_clips(artifacts), "ccc")
        assert train is not None, "the manifest exists, so the number of clips is known"
        spec = branch_spec(fusion.spec, modality)
        encoder = "speech" if modality == "audio" else "text"
        return replace(
            fusion,
            name=f"{member}-{modality}",
            spec=spec,
            train=train,
            tasks={spec.dimensions[0]: 1.0},
            copies=fusion.copies if modality == "audio" else None,
            encoders={name: each for name, each in fusion.encoders.items() if name == encoder},
        )

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        """None: a branch predicts no classes, and `scores` of the summary has its dimension."""
        return []

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        table = [
            "| before the teacher | dimension | test clips | CCC | RMSE |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, values in artifact.summary["scores"].items():
            figures = ["-" if values[key] is None else f"{values[key]:.3f}" for key in _METRICS]
            cells = [name, values["dimension"], str(values["clips"]), *figures]
            table.append(f"| {' | '.join(cells)} |")
        return "\n".join(table)

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        lines: list[Any] = []
        for modality in BRANCHES:
            section = self.job.teacher.model_copy(
                update={"train": branch_training(self.job, modality)}
            )
            for member, suffix, count in self.teacher.planned(artifacts):
                if member in fusions(self.job):
                    model = self.job.teacher.members[member]
                    name = f"{member}-{modality}{suffix}"
                    lines.append(planned_training(self.job, name, count, section, artifacts, model))
        return {"models": lines}


class FusedTeacher(Teacher):
    """Teachers that start from the branches of their own seed and fold."""

    sections = Teacher.sections | {"pretrain"}

    def reads(self) -> Sequence[str]:
        return (*super().reads(), Pretrain.artifact)

    def tasks(self, artifacts: Artifacts) -> list[TrainingTask]:
        index: Index = artifacts[Pretrain.artifact].summary["models"]
        initial: dict[str, dict[str, str]] = {}
        for member, base in self.members(artifacts).items():
            if base.spec.network != NETWORK:
                continue
            for modality in BRANCHES:
                branch = replace(base, name=f"{member}-{modality}")
                for task, own in zip(
                    self.repeated([base], artifacts),
                    self.repeated([branch], artifacts),
                    strict=True,
                ):
                    folder = Path(self.model_store.folder(index[own.name])).absolute()
                    initial.setdefault(task.name, {})[modality] = str(folder)
        return [
            replace(task, initial=initial.get(task.name, {})) for task in super().tasks(artifacts)
        ]
