"""Checks of FE2E and MESM: statistics of a batch that workers or micro-batches split."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.pipeline.recipes.models import models_of, searched_spec

NETWORKS = frozenset({"fe2e", "mesm"})


def check_end_to_end(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Trainings and trials that split a batch over which the network normalises."""
    for each in models_of(job):
        spec = each.spec
        if spec is None or spec.network not in NETWORKS or spec.chunk_normalization != "batch":
            continue
        if each.train.splits_batches:
            yield (
                (*each.section, "train"),
                f"{each.title}: `chunk_normalization: batch` has the statistics of the rows that "
                "one worker computes together; set `workers: 1`, `accumulation: 1` and no "
                "`batch_frames`, or `chunk_normalization: layer`",
            )
    if job.search.enabled:
        yield from _searched(job)


def _searched(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Trials that split the batch which is normalised."""
    space, spec = job.search.space, searched_spec(job)
    if spec is None or spec.network not in NETWORKS:
        return
    searched = space.get("model.chunk_normalization")
    choices = [spec.chunk_normalization] if searched is None else searched.choices or []
    splits = job.search.workers_per_trial > 1 or "train.accumulation" in space
    if "batch" in choices and splits:
        yield (
            ("search",),
            "search: `chunk_normalization: batch` has the statistics of the rows that one worker "
            "computes together; set `workers_per_trial: 1` and search no `train.accumulation`, or "
            "set `chunk_normalization: layer`",
        )
