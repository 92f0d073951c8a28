"""What the tasks of a job cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig, TrainSection
from multistill.pipeline.recipes import Location


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
        if not job.tasks.dimensions or train.dimension_loss == "mse":
            continue
        if train.workers > 1 or train.batch_frames or train.accumulation > 1:
            yield (
                location,
                f"{name}: `train.dimension_loss: {train.dimension_loss}` is over the batch that "
                "one worker sees; set `workers: 1`, `accumulation: 1` and no `batch_frames`, or "
                "`dimension_loss: mse`",
            )
    search = job.search
    if not search.enabled:
        return
    if search.metric == "ccc" and not job.tasks.dimensions:
        yield (
            ("search", "metric"),
            "search.metric: ccc is of dimensions, and the job has none; add them, e.g. `tasks: "
            "[classes, valence]`, or choose another metric",
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
