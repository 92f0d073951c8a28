"""The models of a job, as checks of job files go through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multistill.config import JobConfig, ModelConfig, TrainSection
from multistill.errors import MultistillError
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec
from multistill.pipeline.recipes import Location


@dataclass(frozen=True)
class JobModel:
    """A teacher's or a student's model.

    Attributes:
        title: for messages: `teacher`, "student `name`".
        section: location of the teacher or student.
        location: of its model, inside the section.
    """

    title: str
    section: Location
    location: Location
    model: ModelConfig
    train: TrainSection

    @property
    def spec(self) -> ModelSpec | None:
        """What the preset and its overrides make; None for what `resolve` refuses, which
        `multistill.pipeline.recipes.distillation.check` reports."""
        try:
            return resolve(self.model.preset, self.model.overrides())
        except MultistillError:
            return None


def models_of(job: JobConfig) -> Iterator[JobModel]:
    """The models of teacher and students, in the order of the job file."""
    teacher, several = job.teacher, bool(job.teacher.models)
    for number, (name, model) in enumerate(teacher.members.items()):
        location: Location = ("teacher", "models", number) if several else ("teacher", "model")
        yield JobModel(name, ("teacher",), location, model, teacher.train)
    for number, student in enumerate(job.students):
        section: Location = ("students", number)
        title = f"student `{student.name}`"
        yield JobModel(title, section, (*section, "model"), student.model, student.train)
