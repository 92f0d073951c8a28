"""Valence and arousal first, emotion after: `distillation` with a teacher on trained branches."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.models.branches import BRANCHES
from multistill.pipeline.recipes import Recipe, distillation
from multistill.pipeline.recipes.augmentation import check_of_model
from multistill.pipeline.recipes.models import models_of
from multistill.pipeline.recipes.tasks import over_batch
from multistill.pipeline.recipes.trained_encoders import check_states
from multistill.pipeline.step import Step
from multistill.pipeline.steps.pretrain import NETWORK, FusedTeacher, Pretrain, branch_training
from multistill.workspace import Workspace


def steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    pretrain = Pretrain(job, workspace)
    return distillation.steps_with(job, workspace, [pretrain], FusedTeacher(job, workspace))


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """What the branches cannot be trained with, and all that `distillation` checks."""
    yield from distillation.check(job)
    teachers = [each for each in models_of(job) if each.section == ("teacher",)]
    specs = [each.spec for each in teachers]
    if all(specs) and not any(spec.network == NETWORK for spec in specs if spec):
        yield (
            teachers[0].location,
            f"{teachers[0].title}: the recipe `pretrain` trains the branches of a {NETWORK} "
            f"before it, and `{teachers[0].model.preset}` has none; use `{NETWORK}` or "
            f"`paper-{NETWORK}`, or `recipe: distillation`",
        )
    for modality in BRANCHES:
        train, location = branch_training(job, modality), ("pretrain", modality)
        if train.metric not in (None, "ccc", "loss"):
            yield (
                (*location, "metric"),
                f"pretrain.{modality}: `metric: {train.metric}` is of classes, and a branch "
                "predicts a dimension; use `ccc` or `loss`",
            )
        if train.oversample or train.class_weights != "none":
            yield (
                location,
                f"pretrain.{modality}: `oversample` and `class_weights` are of classes, and a "
                "branch predicts a dimension; remove them",
            )
        changes, place = train.augmentation, (*location, "augmentation")
        yield from check_of_model(job, changes, place, f"pretrain.{modality}", modality)
        encoder = "speech" if modality == "audio" else "text"
        if encoder in job.features.trained:
            start = f"pretrain.{modality}: `"
            yield from check_states(train, (*location, "augmentation"), start, encoder)
        yield from over_batch(location, f"pretrain.{modality}", train)


RECIPE = Recipe(
    name="pretrain",
    summary="valence and arousal first: a teacher on trained branches, then as `distillation`",
    steps=steps,
    check=check,
    left_out=distillation.left_out,
)
