"""A student and search parameters for the search tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multistill.config import (
    DistillationConfig,
    ModelConfig,
    SearchParameter,
    StudentConfig,
    TrainConfig,
)
from multistill.models.presets import resolve
from multistill.search.request import Request
from multistill.search.study import search
from multistill.search.trial import Objective
from multistill.tracking.logger import RunLogger
from multistill.training.task import TrainingTask

TASK = TrainingTask(
    name="student",
    role="student",
    spec=resolve("small-student", {}),
    train=TrainConfig(epochs=9),
    seed=1,
    manifest="/m",
    features="/f",
    soft_targets="/s",
    distillation=DistillationConfig(),
)
STUDENT = StudentConfig(name="student", model=ModelConfig(preset="small-student"))


def among(*choices: Any, **more: Any) -> SearchParameter:
    return SearchParameter(choices=list(choices), **more)


def between(low: float, high: float, **more: Any) -> SearchParameter:
    return SearchParameter(low=low, high=high, **more)


def search_again(
    out: Path, objective: Objective, logger: RunLogger | None = None
) -> dict[str, Any]:
    """Call the search of this folder once more, as it was requested."""
    request = Request.read(out)
    return search(
        request.base,
        request.config,
        request.seed,
        out,
        logger,
        request.fingerprint,
        objective=objective,
    )
