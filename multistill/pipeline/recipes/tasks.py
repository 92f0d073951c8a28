"""What the tasks of a job cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multistill.config import JobConfig, TrainSection
from multistill.config.base import Location
from multistill.pipeline.recipes.models import models_of


def check_tasks(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Metrics without their task, and losses of dimensions over a batch that is split."""
    trainings: list[tuple[Location, str, TrainSection]] = [
        (("teacher", "train"), "teacher", job.teacher.train)
    ]
    trainings += [
        (("students", index, "train"), f"student `{student.name}`", student.train)
        for index, student in enumerate(job.students)
    ]
    for location, name, train in trainings:
        if train.metric == "ccc" and not job.tasks.dimensions:
            yield (
                (*location, "metric"),
                f"{name}: `train.metric: ccc` is of dimensions, and the job has none; add them, "
                "e.g. `tasks: [classes, valence]`, or choose another metric",
            )
        if job.tasks.dimensions:
            yield from over_batch(location, name, train)
    search = job.search
    if job.tasks.classes is None:
        yield from _without_classes(job, trainings)
        yield from _fusions(job)
    if not search.enabled:
        return
    if search.metric == "ccc" and not job.tasks.dimensions:
        yield (
            ("search", "metric"),
            "search.metric: ccc is of dimensions, and the job has none; add them, e.g. `tasks: "
            "[classes, valence]`, or choose another metric",
        )
    champion = job.tracking.champion
    if champion is not None and champion.metric == "validation.ccc" and not job.tasks.dimensions:
        yield (
            ("tracking", "champion"),
            "tracking.champion: validation.ccc is of dimensions, and the job has none; add them, "
            "e.g. `tasks: [classes, valence]`, or choose another metric",
        )
    searched = job.searched_student().train
    of_batch = bool(job.tasks.dimensions) and searched.dimension_loss != "mse"
    if of_batch and (search.workers_per_trial > 1 or "train.accumulation" in search.space):
        yield (
            ("search",),
            f"search: `train.dimension_loss: {searched.dimension_loss}` is over the batch that one "
            "worker sees; set `workers_per_trial: 1` and search no `train.accumulation`, or set "
            "`dimension_loss: mse`",
        )


def _fusions(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Fusions that put out what their branches predict, and nothing of their own."""
    dimensions = set(job.tasks.dimensions)
    for each in models_of(job):
        spec = each.spec
        if spec is None or spec.network != "va-fusion":
            continue
        if dimensions <= {spec.va_audio_dimension, spec.va_text_dimension}:
            yield (
                each.location,
                f"{each.title}: its branches predict all dimensions of `tasks`, so the layers over "
                "both would learn nothing; add `classes` to `tasks`, or use presets `va-audio` and "
                "`va-text`",
            )


def over_batch(
    location: Location, name: str, train: TrainSection
) -> Iterator[tuple[Location, str]]:
    """A loss of dimensions over a batch that the training splits."""
    if train.splits_batches and train.dimension_loss != "mse":
        yield (
            location,
            f"{name}: `train.dimension_loss: {train.dimension_loss}` is over the batch that "
            "one worker sees; set `workers: 1`, `accumulation: 1` and no `batch_frames`, or "
            "`dimension_loss: mse`",
        )


def _without_classes(
    job: JobConfig, trainings: Sequence[tuple[Location, str, TrainSection]]
) -> Iterator[tuple[Location, str]]:
    """Settings that are of classes, in a job that has none."""
    of_dimensions = ("ccc", "loss")
    for location, name, train in trainings:
        if train.metric not in (None, *of_dimensions):
            yield (
                (*location, "metric"),
                f"{name}: `train.metric: {train.metric}` is of classes, and `tasks` has none; use "
                "`ccc` or `loss`, or add `classes`",
            )
        if train.oversample or train.class_weights != "none":
            yield (
                location,
                f"{name}: `oversample` and `class_weights` are of classes, and `tasks` has none; "
                "remove them, or add `classes`",
            )
    champion = job.tracking.champion
    if champion is not None and champion.metric.removeprefix("validation.") not in of_dimensions:
        yield (
            ("tracking", "champion"),
            f"tracking.champion: {champion.metric} is of classes, and `tasks` has none; set "
            "`metric: validation.ccc`",
        )
    if job.search.enabled and job.search.metric not in of_dimensions:
        yield (
            ("search", "metric"),
            f"search.metric: {job.search.metric} is of classes, and `tasks` has none; set "
            "`search.metric: ccc`",
        )
    if job.label_shares.enabled:
        yield (
            ("label_shares",),
            "label_shares: labels are drawn and judged by class, and `tasks` has none; remove "
            "`label_shares`, or add `classes`",
        )
    if job.split.max_per_class:
        yield (
            ("split", "max_per_class"),
            "split.max_per_class: `tasks` has no classes; remove it, or add `classes`",
        )
