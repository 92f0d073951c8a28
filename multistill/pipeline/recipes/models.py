"""The models of a job, as checks of job files go through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multistill.config import JobConfig, ModelConfig, TrainSection
from multistill.config.base import Location
from multistill.errors import MultistillError
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec


@dataclass(frozen=True)
class JobModel:
    """The model of a teacher, a student or the recipe `continual`.

    Attributes:
        title: for messages: `teacher`, "student `name`", `continual`.
        section: its location.
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
        `check_presets` reports."""
        try:
            return resolve(self.model.preset, self.model.overrides())
        except MultistillError:
            return None


def models_of(job: JobConfig) -> Iterator[JobModel]:
    """The models of teacher and students, in the order of the job file; or that of `continual`."""
    if job.recipe == "continual":
        own, config = ("continual",), job.continual
        yield JobModel("continual", own, (*own, "model"), config.model, config.train)
        if config.adapter_model is not None:
            where: Location = (*own, "adapter_model")
            yield JobModel("continual", own, where, config.adapter_model, config.train)
        return
    teacher, several = job.teacher, bool(job.teacher.models)
    for number, (name, model) in enumerate(teacher.members.items()):
        location: Location = ("teacher", "models", number) if several else ("teacher", "model")
        yield JobModel(name, ("teacher",), location, model, teacher.train)
    for number, student in enumerate(job.students):
        section: Location = ("students", number)
        title = f"student `{student.name}`"
        yield JobModel(title, section, (*section, "model"), student.model, student.train)


def searched_spec(job: JobConfig) -> ModelSpec | None:
    """Of the student that is searched; None as of `JobModel.spec`, or where no model is its."""
    model = job.searched_student().model
    return next((each.spec for each in models_of(job) if each.model is model), None)


def check_presets(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Presets that do not exist, and settings that they do not go with."""
    for each in models_of(job):
        try:
            resolve(each.model.preset, each.model.overrides())
        except MultistillError as error:
            yield each.location, f"{'.'.join(map(str, each.location))}: {error}"


def check_frozen(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Branches that stay as nobody trained them."""
    for each in models_of(job):
        of_pretrain = job.recipe == "pretrain" and each.section == ("teacher",)
        if each.spec is not None and each.spec.va_frozen and not of_pretrain:
            yield (
                each.location,
                f"{each.title}: with `va_frozen`, the branches of a va-fusion stay as their "
                "pre-training left them, and here they have none; set `va_frozen: false`, or let "
                "the teacher of `recipe: pretrain` have this model",
            )
        elif each.spec is not None and each.spec.va_frozen and job.features.trained:
            encoder = job.features.trained[0]
            yield (
                each.location,
                f"{each.title}: with `va_frozen`, the branches of a va-fusion stay as their "
                f"pre-training left them, and features.{encoder}.train would go on changing what "
                "they read; set `va_frozen: false`, or `train: none`",
            )
    if job.search.enabled:
        parameter = job.search.space.get("model.va_frozen")
        if parameter is not None and True in (parameter.choices or ()):
            yield (
                ("search", "space", "model.va_frozen"),
                "search.space: `model.va_frozen` is of branches that are trained before their "
                "fusion, and those of a student are not; remove that key",
            )
