"""Encode a corpus and see what its features carry: a linear probe, no head, no teacher."""

from multistill.pipeline.recipes import Recipe
from multistill.pipeline.steps.data import Features, Prepare
from multistill.pipeline.steps.evaluation import Probe
from multistill.pipeline.steps.report import Report

RECIPE = Recipe(
    name="features-only",
    summary="corpora, encoder states, majority baseline and linear probes, report",
    steps=lambda job, workspace: [
        step(job, workspace) for step in (Prepare, Features, Probe, Report)
    ],
)
