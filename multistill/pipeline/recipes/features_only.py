"""Encode a corpus and see what its features carry: a linear probe, no head, no teacher."""

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.pipeline.recipes import Recipe
from multistill.pipeline.recipes.scores import check_scores
from multistill.pipeline.recipes.unlabelled import refuse_unlabelled
from multistill.pipeline.step import Step
from multistill.pipeline.steps.data import Features, Prepare
from multistill.pipeline.steps.evaluation import Probe
from multistill.pipeline.steps.functionals import OPENSMILE, Functionals
from multistill.pipeline.steps.report import Report
from multistill.workspace import Workspace


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """What of the evaluation needs trained models, and what has no meaning."""
    if job.evaluation.robustness:
        yield (
            ("evaluation", "robustness"),
            "evaluation.robustness: this recipe trains no model whose answers could change; remove "
            "the key, or set `recipe: distillation`",
        )
    if job.features.augmentation.copies:
        yield (
            ("features", "augmentation"),
            "features.augmentation: this recipe trains no model that would read the copies; remove "
            "the section, or set `recipe: distillation`",
        )
    for section in job.features.trained:
        yield (
            ("features", section, "train"),
            f"features.{section}.train: this recipe trains no model that would train the encoder; "
            "set `none`, or `recipe: distillation`",
        )
    yield from check_scores(job)
    yield from refuse_unlabelled(job)


def steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    opensmile: list[Step] = [Functionals(job, workspace)] if job.evaluation.opensmile else []
    return [
        Prepare(job, workspace),
        Features(job, workspace),
        *opensmile,
        Probe(job, workspace),
        Report(job, workspace),
    ]


RECIPE = Recipe(
    name="features-only",
    summary="corpora, encoder states, majority baseline and linear probes, report",
    steps=steps,
    check=check,
    left_out=lambda job: {} if job.evaluation.opensmile else {Functionals.name: OPENSMILE},
)
