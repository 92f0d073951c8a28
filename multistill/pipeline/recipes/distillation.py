"""Multi-Still (2023): a multimodal teacher, soft targets, students and a search, scored on test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.pipeline.recipes import Recipe
from multistill.pipeline.recipes.augmentation import check_augmentation
from multistill.pipeline.recipes.end_to_end import check_end_to_end
from multistill.pipeline.recipes.fronts import check_fronts
from multistill.pipeline.recipes.models import check_frozen, check_presets, models_of
from multistill.pipeline.recipes.packs import pack_steps, packs_left_out
from multistill.pipeline.recipes.scores import check_scores
from multistill.pipeline.recipes.stored_states import check_stored_states
from multistill.pipeline.recipes.tasks import check_tasks
from multistill.pipeline.recipes.trained_encoders import check_trained_encoders
from multistill.pipeline.recipes.unlabelled import check_unlabelled
from multistill.pipeline.step import Step
from multistill.pipeline.steps.copies import Copies
from multistill.pipeline.steps.data import Features, Prepare, Statistics
from multistill.pipeline.steps.distill import Distill
from multistill.pipeline.steps.evaluation import Evaluate
from multistill.pipeline.steps.label_shares import LabelShares
from multistill.pipeline.steps.report import Report
from multistill.pipeline.steps.search import Search
from multistill.pipeline.steps.training import ModelStep, Students, Teacher
from multistill.workspace import Workspace


def steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    return steps_with(job, workspace, [], Teacher(job, workspace))


def steps_with(
    job: JobConfig, workspace: Workspace, before: Sequence[Step], teacher: Teacher
) -> list[Step]:
    """The steps with a teacher of another kind.

    Args:
        before: steps whose artifacts that teacher reads.
    """
    students = Students(job, workspace)
    more: list[ModelStep] = []
    if job.label_shares.enabled:
        more.append(LabelShares(job, workspace))
    if job.search.enabled:
        more.append(Search(job, workspace))
    copies = [Copies(job, workspace)] if job.features.augmentation.copies else []
    return [
        Prepare(job, workspace),
        Features(job, workspace),
        Statistics(job, workspace),
        *copies,
        *before,
        teacher,
        Distill(job, workspace),
        students,
        *more,
        *pack_steps(job, workspace),
        Evaluate(job, workspace, [teacher, students, *more]),
        Report(job, workspace),
    ]


def left_out(job: JobConfig) -> Mapping[str, str]:
    optional = {LabelShares.name: job.label_shares.enabled, Search.name: job.search.enabled}
    missing = {
        name: f"add `{name}: true` to the job file" for name, there in optional.items() if not there
    }
    if not job.features.augmentation.copies:
        missing[Copies.name] = "set `features.augmentation.copies` in the job file"
    return missing | packs_left_out(job)


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Problems that the sections cannot see: presets, the search space, layers, losses."""
    from multistill.search.space import check_space

    yield from check_presets(job)
    yield from check_frozen(job)
    for sentence in check_space(job.search.space, job.searched_student()):
        yield ("search", "space"), f"search.space: {sentence}"
    yield from check_tasks(job)
    yield from check_scores(job)
    yield from check_augmentation(job)
    yield from _protocol(job)
    yield from check_stored_states(job)
    yield from check_fronts(job)
    yield from check_end_to_end(job)
    yield from check_trained_encoders(job)
    yield from _losses(job)
    yield from _label_shares(job)
    yield from check_unlabelled(job)
    yield from _sequences(job)
    if job.tracking.champion is not None and not job.search.enabled:
        yield (
            ("tracking", "champion"),
            "tracking.champion: the winner of a search is registered, and this job has none; add "
            "`search: true`, or remove `champion`",
        )
    if job.search.enabled and job.search.metric == "loss":
        for key in ("train.loss", "train.label_source"):
            if key in job.search.space:
                yield (
                    ("search", "metric"),
                    f"search.metric: trials with another `{key}` measure another loss, so `loss` "
                    "cannot compare them; choose another metric or remove it from search.space",
                )
    if job.search.epochs is not None and job.search.grace_epochs > job.search.epochs:
        yield (
            ("search", "grace_epochs"),
            f"search.grace_epochs ({job.search.grace_epochs}) is above search.epochs "
            f"({job.search.epochs}); no trial would ever be stopped early",
        )


def _protocol(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Searches that the protocol does not go with."""
    if not job.protocol.crosses:
        if job.search.enabled and job.search.nested:
            yield (
                ("search", "nested"),
                "search.nested: a holdout has one training part to search on; set `nested: "
                "false`, or a `protocol` with folds",
            )
        return
    if job.search.enabled and job.search.nested and job.tracking.champion is not None:
        yield (
            ("search", "nested"),
            "search.nested: every fold has a winner of its own, so there is no one that "
            "`tracking.champion` could register; set `nested: false`, or remove `champion`",
        )


def _sequences(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Students that pool no sequence that the teacher pools too, where they are to learn it."""
    searched = job.search.space if job.search.enabled else {}
    if not job.distillation.sequence_weight and "distillation.sequence_weight" not in searched:
        return
    read = [(each, set(spec.sequences)) for each in models_of(job) if (spec := each.spec)]
    teacher = {name for each, own in read if each.section == ("teacher",) for name in own}
    for each, own in read:
        if each.section != ("teacher",) and not own & teacher:
            names = [" and ".join(sorted(pooled)) or "none" for pooled in (own, teacher)]
            yield (
                each.location,
                f"{each.title}: distillation.sequence_weight compares sequences that are pooled, "
                f"and the student pools {names[0]}, the teacher {names[1]}; choose models with a "
                "deep path that read the same, or set `sequence_weight: 0`",
            )


def _label_shares(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Students that balance classes by labels that they are not given."""
    if not (job.label_shares.enabled and job.label_shares.unlabelled):
        return
    for student in job.students_with_label_shares():
        if student.train.oversample:
            yield (
                ("label_shares", "unlabelled"),
                f"label_shares.unlabelled: `train.oversample` of the student `{student.name}` "
                "draws clips by their class, and a clip without label has none; set `oversample: "
                "false` there, or `unlabelled: false`",
            )


def _losses(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Distillation losses that do not fit how the students are trained."""
    space = job.search.space if job.search.enabled else {}
    searched = space.get("distillation.loss")
    choices = (searched.choices if searched else None) or []
    # A choice that is no loss, such as a boolean, is told by `check_space`.
    known = get_args(type(job.distillation).model_fields["loss"].annotation)
    losses = {job.distillation.loss, *(loss for loss in known if loss in choices)}
    batch_wise = ["loss dist"] if "dist" in losses else []
    for name in ("cka_weight", "relation_weight"):
        if getattr(job.distillation, name) or f"distillation.{name}" in space:
            batch_wise.append(name)
    accumulation = space.get("train.accumulation")
    for option in batch_wise if job.search.enabled else []:
        if job.search.workers_per_trial > 1:
            yield (
                ("search", "workers_per_trial"),
                f"search.workers_per_trial: distillation.{option} correlates over the batch that "
                "one worker sees; it needs trials of one worker",
            )
        if accumulation is not None and accumulation.choices != [1]:
            yield (
                ("search", "space", "train.accumulation"),
                f"search.space: distillation.{option} correlates over the rows that are computed "
                "together, which `train.accumulation` splits; remove it from the space",
            )
    if "two-mse" in losses and job.distillation.standardize:
        yield (
            ("distillation", "standardize"),
            "distillation.standardize is of logits, and distillation.loss two-mse compares shares; "
            "set standardize: false, or use another loss",
        )
    for index, student in enumerate(job.students):
        location: Location = ("students", index, "train")
        name = f"student `{student.name}`"
        label_losses = {str(student.train.loss)}
        parameter = space.get("train.loss")
        if parameter is not None and student is job.searched_student():
            label_losses.update(map(str, parameter.choices or []))
        if "two-mse" in losses and label_losses != {"mse"}:
            yield (
                location,
                f"{name}: distillation.loss two-mse fits shares, not logits, so the student and "
                "its control need `train.loss: mse`",
            )
        of_logits = sorted(losses - {"two-mse"})
        if of_logits and "mse" in label_losses:
            yield (
                location,
                f"{name}: `train.loss: mse` trains a model that puts out shares, and "
                f"distillation.loss {of_logits[0]} compares logits; use distillation.loss two-mse, "
                "or another `train.loss`",
            )
        if losses and "one-vs-rest" in label_losses:
            yield (
                location,
                f"{name}: `train.loss: one-vs-rest` tells each class from the rest, and "
                f"distillation.loss {sorted(losses)[0]} compares distributions over the classes; "
                "use another `train.loss` for the student (its teacher may have this one)",
            )
        train = student.train
        if train.splits_batches:
            for option in batch_wise:
                yield (
                    location,
                    f"{name}: distillation.{option} correlates over the batch that one worker "
                    "sees; it needs `workers: 1`, `accumulation: 1` and no `batch_frames`",
                )


RECIPE = Recipe(
    name="distillation",
    summary="teacher, soft targets, students with controls, search, evaluation, report",
    steps=steps,
    check=check,
    left_out=left_out,
)
