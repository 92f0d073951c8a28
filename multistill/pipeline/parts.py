"""A job file split into parts that a scheduler runs as an array of jobs."""

from __future__ import annotations

from multistill.cluster.slurm import Part
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace

SEEDS = "seeds"
_FIRST_TRAINED, _LAST_TRAINED = "teacher", "students"


def parts_of(job: JobConfig, array: str | None) -> list[Part]:
    """The parts of a job.

    Args:
        array: None: all in one; `seeds`: the trainings of each of its seeds by a task of an array,
            between one part that encodes and one that does the rest; `KEY=VALUE,VALUE,...`: the
            whole job with each of the values, by a task of an array.

    Raises:
        UsageError: the job cannot be split like that.
    """
    if array is None:
        return [Part("run")]
    if array == SEEDS:
        return _by_seed(job)
    key, equals, values = array.partition("=")
    options = [["--set", f"{key}={value.strip()}"] for value in values.split(",") if value.strip()]
    if not equals or not key.strip() or not options:
        raise UsageError(
            f"--array {array}: write `seeds`, or a key of the job file with its values, e.g. "
            "--array split.seed=1,2,3"
        )
    return [Part("run", tasks=options)]


def _by_seed(job: JobConfig) -> list[Part]:
    stages = [step.name for step in steps_of(job, Workspace(job.workspace))]
    if job.seeds == 1 or not {_FIRST_TRAINED, _LAST_TRAINED} <= set(stages):
        raise UsageError(
            "--array seeds: the job trains nothing with several seeds; set `seeds` of the job "
            "file, or leave --array out"
        )
    if job.teacher.seeds > 1:
        raise UsageError(
            f"--array seeds: the teacher of each seed is an ensemble of {job.teacher.seeds} seeds "
            "of its own (teacher.seeds), which one task would not train; leave --array out"
        )
    before = stages[stages.index(_FIRST_TRAINED) - 1]
    alone = ["--set", "seeds=1", "--until", _LAST_TRAINED]
    seeds = range(job.seed, job.seed + job.seeds)
    return [
        Part("encode", ["--until", before]),
        Part("train", alone, [["--set", f"seed={seed}"] for seed in seeds]),
        Part("rest"),
    ]
