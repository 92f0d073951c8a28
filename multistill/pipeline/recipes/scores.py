"""What protocol, tasks and evaluation of a job cannot be combined with, in any recipe."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location


def check_scores(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Splits that contradict the protocol, and scores that have no meaning."""
    if job.protocol.crosses and job.split.by in ("column", "random"):
        yield (
            ("split", "by"),
            f"split.by: {job.split.by} decides what is tested, and `protocol: {job.protocol.kind}` "
            "tests every clip; set `protocol: holdout`, or `split.by: session`",
        )
    if job.protocol.repeats > 1 and job.tasks.dimensions:
        yield (
            ("protocol", "repeats"),
            "protocol.repeats: repetitions average counts of classes, and `tasks` has dimensions; "
            "use `repeats: 1`, or remove the dimensions",
        )
    if job.protocol.repeats > 1 and job.evaluation.robustness:
        yield (
            ("evaluation", "robustness"),
            "evaluation.robustness: each distorted clip is answered by the models of one fold, and "
            "`protocol.repeats` has several; use `repeats: 1`, or remove `robustness`",
        )
    if job.protocol.kind == "cross-corpus" and job.evaluation.robustness:
        yield (
            ("evaluation", "robustness"),
            "evaluation.robustness: each distorted clip is answered by the models of one fold, and "
            "cross-corpus tests it by the models of every corpus; remove `robustness`",
        )
    alone = job.tasks.classes is None
    if alone and (job.evaluation.robustness or job.evaluation.opensmile):
        yield (
            ("evaluation",),
            "evaluation: `robustness` and `opensmile` are scored by class, and `tasks` has none; "
            "remove them, or add `classes`",
        )
    if alone and job.protocol.kind == "cross-corpus":
        yield (
            ("protocol",),
            "protocol: cross-corpus is a matrix of class scores, and `tasks` has none; use "
            "`protocol: {kind: leave-one-out, by: corpus}`, or add `classes`",
        )
