"""The step that trains students with fewer labels, to see where distillation helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multistill.config import StudentConfig
from multistill.hardware import Resources
from multistill.pipeline.seeds import trainings
from multistill.pipeline.step import Artifacts, StepRun
from multistill.pipeline.steps.training import (
    ModelStep,
    planned_training,
    student_task,
    training_inputs,
)
from multistill.training.model_store import VERSION, Index
from multistill.workspace import Artifact

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate
    from multistill.training.task import TrainingTask


class LabelShares(ModelStep):
    """Students and controls by share of the training labels; the teacher was given all of them.

    A student and its control of one seed have the same labels, and the labels of a smaller share
    are among those of a larger one. With all labels they are the trainings of the step `students`.
    """

    name = "label_shares"
    artifact = "label_shares"
    sections = frozenset({"label_shares", "students", "distillation", "tasks"})

    def config(self) -> Any:
        return {
            "label_shares": self.job.label_shares.identity(),
            "students": [each.identity() for each in self.job.students_with_label_shares()],
            "distillation": self.job.distillation.identity(),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "models": VERSION,
        }

    def reads(self) -> tuple[str, ...]:
        return (*training_inputs(self.job), "soft_targets")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        return self.train_members(self.tasks, run)

    def tasks(self, artifacts: Artifacts) -> dict[str, list[TrainingTask]]:
        """The trainings of every student and control at every share, one per seed."""
        config = self.job.label_shares
        members: dict[str, list[TrainingTask]] = {}
        for student, share, name in self._points():
            base = replace(
                student_task(self.job, artifacts, student),
                name=name,
                label_share=share,
                unlabelled=config.unlabelled and share < 1,
            )
            for task in (base, base.control(f"{name}-control")):
                members[task.name] = trainings(task, config.seeds, artifacts["soft_targets"])
        return members

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        index: Index = artifact.summary["models"]
        members = artifact.summary["members"]
        candidates = []
        for student, share, name in self._points():
            control, point = f"{name}-control", (student.name, share)
            candidates += [
                self.over_seeds(name, index, members[name], compare_to=control, label_share=point),
                self.over_seeds(control, index, members[control], label_share=point),
            ]
        return candidates

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        config = self.job.label_shares
        count = len(config.shares) * config.seeds
        return {
            "models": [
                planned_training(self.job, name, count, student, artifacts)
                for student in self.job.students_with_label_shares()
                for name in (f"{student.name}-labels", f"{student.name}-labels-control")
            ]
        }

    def _points(self) -> Iterator[tuple[StudentConfig, float, str]]:
        for student in self.job.students_with_label_shares():
            for share, name in self.job.label_shares.names_of(student.name):
                yield student, share, name
