"""The `search` section of the job file: search space, budget and resources of trials."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from multistill.config.base import Address, Section, execution
from multistill.config.models import canonical_loss

TEMPERATURE = "distillation.temperature"
_LOSS = "distillation.loss"


class SearchParameter(Section):
    """One searched setting: a range (`low`, `high`, `log`, `step`) or `choices`."""

    low: float | None = Field(None, description="lowest value of a range")
    high: float | None = Field(None, description="highest value of a range")
    log: bool = Field(False, description="draw evenly on a logarithmic scale")
    step: float | None = Field(None, gt=0, description="distance between values of a range")
    choices: list[str | int | float | bool] | None = Field(
        None, min_length=1, description="the values to choose from, in place of a range"
    )
    when: dict[str, list[str | int | float | bool]] = Field(
        default_factory=dict,
        description="searched only where other searched names take one of these values, "
        "e.g. {distillation.loss: [kd, dkd]}",
    )

    @model_validator(mode="after")
    def _check(self) -> SearchParameter:
        if self.choices is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("give either `choices` or `low` and `high`, not both")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs `low` and `high`, or `choices`")
        if self.low >= self.high:
            raise ValueError(f"the range is empty or reversed: low {self.low} >= high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs `low` above 0")
        if self.log and self.step is not None:
            raise ValueError("`log` and `step` cannot be combined")
        return self


def _with_canonical_losses(parameter: SearchParameter, is_loss: bool) -> SearchParameter:
    """Replace synonyms in the choices of `distillation.loss` and in conditions on it."""
    changes: dict[str, object] = {}
    if is_loss and parameter.choices is not None:
        changes["choices"] = [canonical_loss(choice) for choice in parameter.choices]
    if _LOSS in parameter.when:
        losses = [canonical_loss(value) for value in parameter.when[_LOSS]]
        changes["when"] = {**parameter.when, _LOSS: losses}
    return parameter.model_copy(update=changes)


def _default_space() -> dict[str, SearchParameter]:
    return {
        TEMPERATURE: SearchParameter(low=1.0, high=8.0),
        "distillation.weight": SearchParameter(low=0.05, high=0.9),
    }


class SearchConfig(Section):
    """Ray Tune with Optuna over the settings of one student, compared on validation only.

    A job without this section searches nothing; `search: true` searches with all defaults.
    """

    switch: ClassVar = "enabled"

    enabled: bool = Field(True, description="`search: false` is short for `{enabled: false}`")
    student: str | None = Field(
        None, description="name of the searched student; default: the first"
    )
    trials: int = Field(16, ge=1, description="settings that are tried")
    epochs: int | None = Field(
        None, ge=1, description="epoch budget of a trial; default: the student's epochs"
    )
    metric: Literal["macro_f1", "uar", "weighted_f1", "accuracy", "loss", "ccc"] = Field(
        "macro_f1", description="on validation, by which trials are compared"
    )
    space: dict[str, SearchParameter] = Field(
        default_factory=_default_space,
        min_length=1,
        description="what is searched, e.g. {distillation.weight: {low: 0.1, high: 0.9}}; "
        "without classes, the default is the weight alone",
    )
    grace_epochs: int = Field(3, ge=1, description="ASHA stops no trial before this epoch")
    reduction: int = Field(3, ge=2, description="ASHA keeps one in this many trials at each rung")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="random and grid are baselines; a grid needs `choices` everywhere"
    )
    startup_trials: int = Field(8, ge=1, description="random trials before TPE starts")
    retrain: int = Field(1, ge=1, le=10, description="best trials retrained at full budget")
    seeds: int = Field(
        3,
        ge=1,
        le=20,
        description="of each retrained trial and its control; none is the trials' own",
    )
    nested: bool = Field(
        False,
        description="under cross-validation, a search in every fold, on its training and "
        "validation parts; default: one in the first fold, whose winner is trained in all",
    )
    second: Literal["parameters", "latency"] | None = Field(
        None, description="second objective, minimized: a Pareto front of the metric against it"
    )
    storage: Address | None = execution(
        None,
        description="database of the study (postgresql://user@host/name; the password comes from "
        "the environment); default: a journal file in the workspace",
    )
    concurrent: int | None = execution(
        None, ge=1, description="trials at the same time; default: what fits"
    )
    workers_per_trial: int = execution(
        1, ge=1, description="data-parallel workers of one trial; more than one start Ray Train"
    )
    cpus_per_trial: float = execution(1.0, gt=0, description="of each worker of a trial")
    gpus_per_trial: float | None = execution(None, ge=0, description="of each worker of a trial")
    max_failures: int = execution(1, ge=0, description="restarts of a trial")

    @field_validator("space")
    @classmethod
    def _canonical_losses(cls, space: dict[str, SearchParameter]) -> dict[str, SearchParameter]:
        return {key: _with_canonical_losses(value, key == _LOSS) for key, value in space.items()}

    @model_validator(mode="after")
    def _check(self) -> SearchConfig:
        gpus = self.gpus_per_trial
        if gpus is not None and gpus % 1 and self.workers_per_trial > 1:
            raise ValueError(
                "a fraction of a GPU works for trials of one worker only (NCCL refuses a shared "
                "GPU); set `workers_per_trial: 1` or a whole `gpus_per_trial`"
            )
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        return "min" if self.metric == "loss" else "max"
