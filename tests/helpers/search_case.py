"""A student and search parameters for the search tests."""

from __future__ import annotations

from typing import Any

from multistill.config import (
    DistillationConfig,
    ModelConfig,
    SearchParameter,
    StudentConfig,
    TrainConfig,
)
from multistill.models.presets import resolve
from multistill.training.task import TrainingTask

TASK = TrainingTask(
    name="student",
    spec=resolve("small-student", {}).to_dict(),
    train=TrainConfig(epochs=9).model_dump(mode="json"),
    seed=1,
    manifest="/m",
    features="/f",
    soft_targets="/s",
    distillation=DistillationConfig().model_dump(mode="json"),
)
STUDENT = StudentConfig(name="student", model=ModelConfig(preset="small-student"))


def among(*choices: Any, **more: Any) -> SearchParameter:
    return SearchParameter(choices=list(choices), **more)


def between(low: float, high: float, **more: Any) -> SearchParameter:
    return SearchParameter(low=low, high=high, **more)
