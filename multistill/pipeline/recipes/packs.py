"""Steps that prepare what `evaluate` scores beside the models, where the job asks for it."""

from __future__ import annotations

from multistill.config import JobConfig
from multistill.pipeline.step import Step
from multistill.pipeline.steps.functionals import OPENSMILE, Functionals
from multistill.pipeline.steps.robustness import ROBUSTNESS, Robustness
from multistill.workspace import Workspace


def pack_steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    """The steps that the job's `evaluation` asks for."""
    steps: list[Step] = [Functionals(job, workspace)] if job.evaluation.opensmile else []
    return steps + ([Robustness(job, workspace)] if job.evaluation.robustness else [])


def packs_left_out(job: JobConfig) -> dict[str, str]:
    """The others, each with what to change in the job file to have it."""
    missing = {}
    if not job.evaluation.robustness:
        missing[Robustness.name] = ROBUSTNESS
    if not job.evaluation.opensmile:
        missing[Functionals.name] = OPENSMILE
    return missing
