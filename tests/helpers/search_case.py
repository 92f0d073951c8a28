"""A student, search parameters and studies for the search tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from multistill.config import (
    DistillationConfig,
    ModelConfig,
    SearchConfig,
    SearchParameter,
    StudentConfig,
    TrainConfig,
)
from multistill.models.presets import resolve
from multistill.search.spec import SearchSpec
from multistill.search.storage import open_storage, open_study
from multistill.search.study import search
from multistill.search.trainable import Objective
from multistill.tracking.logger import RunLogger
from multistill.training.task import TrainingTask

TASK = TrainingTask(
    name="student",
    role="student",
    spec=resolve("small-student", {}),
    train=TrainConfig(epochs=9, batch_size=64, learning_rate=5e-5),
    seed=1,
    manifest="/m",
    features="/f",
    soft_targets="/s",
    distillation=DistillationConfig(),
)
STUDENT = StudentConfig(name="student", model=ModelConfig(preset="small-student"))

TEMPERATURE, WEIGHT = "distillation.temperature", "distillation.weight"
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    TEMPERATURE: FloatDistribution(1, 8),
    WEIGHT: FloatDistribution(0, 1),
}


def choice(*values: Any, **more: Any) -> SearchParameter:
    return SearchParameter(choices=list(values), **more)


def interval(low: float, high: float, **more: Any) -> SearchParameter:
    return SearchParameter(low=low, high=high, **more)


def make_spec(**config: Any) -> SearchSpec:
    return SearchSpec(TASK, SearchConfig(**config), 1, "0123", "study")


def write_spec(folder: Path, **config: Any) -> SearchSpec:
    spec = make_spec(**config)
    spec.write(folder)
    return spec


def study_of(folder: Path, spec: SearchSpec) -> optuna.Study:
    """The study in the folder's journal, opened as by another process."""
    return open_study(open_storage(folder, None), spec.study, spec.directions)


def finish_trial(study: optuna.Study, value: float | None, driver: str) -> int:
    """Add a trial that `driver` finished after two epochs; None: it failed."""
    trial = study.ask()
    trial.set_user_attr("driver", driver)
    trial.set_user_attr("outcome", {"epochs": 2, "seconds": 1.0, "reason": ""})
    study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
    return trial.number


def search_again(
    out: Path, objective: Objective, logger: RunLogger | None = None
) -> dict[str, Any]:
    """Call `search` with the specification that the folder holds."""
    spec = SearchSpec.read(out)
    return search(
        spec.base, spec.config, spec.seed, out, logger, spec.fingerprint, objective=objective
    )
