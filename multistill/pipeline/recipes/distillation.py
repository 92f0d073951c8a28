"""Multi-Still (2023): a multimodal teacher, soft targets, students, a search, judged on test."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.errors import MultistillError
from multistill.pipeline.recipes import Location, Recipe
from multistill.pipeline.step import Step
from multistill.pipeline.steps.data import Features, Prepare
from multistill.pipeline.steps.evaluation import Evaluate
from multistill.pipeline.steps.report import Report
from multistill.pipeline.steps.search import Search
from multistill.pipeline.steps.training import Distill, ModelStep, Students, Teacher
from multistill.workspace import Workspace


def steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    teacher, students = Teacher(job, workspace), Students(job, workspace)
    searches = [Search(job, workspace)] if job.search.enabled else []
    scored: list[ModelStep] = [teacher, students, *searches]
    return [
        Prepare(job, workspace),
        Features(job, workspace),
        teacher,
        Distill(job, workspace),
        students,
        *searches,
        Evaluate(job, workspace, scored),
        Report(job, workspace),
    ]


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """What only the rooms know: model presets, their overrides and the search space."""
    from multistill.models.presets import resolve
    from multistill.search.space import check_space

    models = [(("teacher", "model"), job.teacher.model)]
    models += [
        (("students", index, "model"), student.model)  # type: ignore[misc]
        for index, student in enumerate(job.students)
    ]
    for at, model in models:
        try:
            resolve(model.preset, model.overrides())
        except MultistillError as error:
            yield at, f"{'.'.join(map(str, at))}: {error}"
    for sentence in check_space(job.search.space, job.searched_student()):
        yield ("search", "space"), f"search.space: {sentence}"
    yield from _layers(job)
    yield from _losses(job)
    if job.search.enabled and job.search.metric == "loss":
        for key in ("train.loss", "train.label_source"):
            if key in job.search.space:
                yield (
                    ("search", "metric"),
                    f"search.metric: trials with another `{key}` measure another loss, so `loss` "
                    "cannot compare them; choose another metric or take it out of search.space",
                )
    if job.search.epochs is not None and job.search.grace_epochs > job.search.epochs:
        yield (
            ("search", "grace_epochs"),
            f"search.grace_epochs ({job.search.grace_epochs}) is above search.epochs "
            f"({job.search.epochs}); no trial would ever be stopped early",
        )


def _layers(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Encoder layers that a model is to read and the features do not hold apart."""
    kept = job.features.side_by_side()
    asked: list[tuple[Location, str, object]] = []
    for name in ("speech_layer", "text_layer"):
        asked.append((("teacher", "model"), name, getattr(job.teacher.model, name)))
        for index, student in enumerate(job.students):
            asked.append((("students", index, "model"), name, getattr(student.model, name)))
        searched = job.search.space.get(f"model.{name}") if job.search.enabled else None
        if searched and searched.choices is None:
            yield ("search", "space"), f"search.space: `model.{name}` needs `choices`"
        choices = (searched.choices if searched else None) or []
        asked += [(("search", "space", f"model.{name}"), name, choice) for choice in choices]
    for at, name, layer in asked:
        encoder, layers = name.removesuffix("_layer"), kept.get(f"{name}s", [])
        if layer is not None and layer not in layers:
            there = f"holds {', '.join(map(str, layers))}" if layers else "holds one state"
            yield (
                at,
                f"{name}: layer {layer} cannot be read, the store {there}; set features.{encoder}: "
                f"{{layers: [..., {layer}], combine: concat}}",
            )


def _losses(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Distillation losses that do not go with how students are trained."""
    space = job.search.space if job.search.enabled else {}
    searched = space.get("distillation.loss")
    asked = {job.distillation.loss, *((searched.choices or []) if searched else [])}
    over_batch = ["loss dist"] if "dist" in asked else []
    if job.distillation.cka_weight or "distillation.cka_weight" in space:
        over_batch.append("cka_weight")
    cut = space.get("train.accumulation")
    for option in over_batch if job.search.enabled else []:
        if job.search.workers_per_trial > 1:
            yield (
                ("search", "workers_per_trial"),
                f"search.workers_per_trial: distillation.{option} correlates over the batch that "
                "one worker sees; it needs trials of one worker",
            )
        if cut is not None and cut.choices != [1]:
            yield (
                ("search", "space", "train.accumulation"),
                f"search.space: distillation.{option} correlates over the rows that are computed "
                "together, which `train.accumulation` cuts; take it out of the space",
            )
    for index, student in enumerate(job.students):
        at, name = ("students", index, "train"), f"student `{student.name}`"
        if "two-mse" in asked and student.train.loss != "mse":
            yield (
                at,
                f"{name}: distillation.loss two-mse fits shares, not logits, so the student and "
                "its control need `train.loss: mse`",
            )
        train = student.train
        if train.workers > 1 or train.batch_frames or train.accumulation > 1:
            for option in over_batch:
                yield (
                    at,
                    f"{name}: distillation.{option} correlates over the batch that one worker "
                    "sees; it needs `workers: 1`, `accumulation: 1` and no `batch_frames`",
                )


RECIPE = Recipe(
    name="distillation",
    summary="teacher, soft targets, students with controls, search, evaluation, report",
    steps=steps,
    check=check,
)
