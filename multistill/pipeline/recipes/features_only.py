"""Encode a corpus and see what its features carry: a linear probe, no head, no teacher."""

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.pipeline.recipes import Location, Recipe
from multistill.pipeline.steps.data import Features, Prepare
from multistill.pipeline.steps.evaluation import Probe
from multistill.pipeline.steps.report import Report


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """What of the evaluation needs trained models."""
    if job.evaluation.robustness:
        yield (
            ("evaluation", "robustness"),
            "evaluation.robustness: this recipe trains no model whose answers could change; remove "
            "the key, or set `recipe: distillation`",
        )


RECIPE = Recipe(
    name="features-only",
    summary="corpora, encoder states, majority baseline and linear probes, report",
    steps=lambda job, workspace: [
        step(job, workspace) for step in (Prepare, Features, Probe, Report)
    ],
    check=check,
)
