"""What one training is: plain data that travels to workers and trials as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from multistill.config import DistillationConfig, TrainConfig
from multistill.errors import UsageError


@dataclass(frozen=True)
class TrainingTask:
    """One model to train.

    Attributes:
        name: folder name of the result below the launcher's `out`.
        spec: the model, as `ModelSpec.to_dict()` gives it.
        train: a `TrainConfig` dump.
        seed: of weights, batches and dropout.
        manifest: absolute path of `manifest.parquet` (or of the folder that holds it).
        features: absolute path of the feature store.
        leave_out_fold: train on the other folds only. Validation rows are kept whatever
            their fold: no model trains on them, so no teacher can leak them.
        soft_targets: a teacher's Parquet file; with `distillation`, makes this a student.
        distillation: a `DistillationConfig` dump.
    """

    name: str
    spec: dict[str, Any]
    train: dict[str, Any]
    seed: int
    manifest: str
    features: str
    leave_out_fold: int | None = None
    soft_targets: str | None = None
    distillation: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.soft_targets is None) != (self.distillation is None):
            raise UsageError(
                f"training task `{self.name}` names only one of `soft_targets` and "
                "`distillation`; a student needs both, any other model neither"
            )

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig.model_validate(self.train)

    @property
    def distillation_config(self) -> DistillationConfig | None:
        if self.distillation is None:
            return None
        return DistillationConfig.model_validate(self.distillation)

    def identity(self) -> dict[str, Any]:
        """What decides the weights, without where the files lie and how the work is spread."""
        distillation = self.distillation_config
        return {
            "model": dict(self.spec),
            "train": self.train_config.identity(),
            "seed": self.seed,
            "leave_out_fold": self.leave_out_fold,
            "distillation": distillation.identity() if distillation else None,
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainingTask:
        return cls.from_dict(json.loads(text))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingTask:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"a training task has no field `{unknown[0]}`")
        return cls(**values)


def seed_tasks(base: TrainingTask, seeds: int) -> list[TrainingTask]:
    """The same training from `seeds` seeds: an ensemble. One seed keeps the name."""
    if seeds == 1:
        return [base]
    return [
        replace(base, name=f"{base.name}-seed{number}", seed=base.seed + number)
        for number in range(seeds)
    ]


def fold_tasks(base: TrainingTask, folds: Iterable[int]) -> list[TrainingTask]:
    """One training per left-out fold, for out-of-fold soft targets (cross-fitting)."""
    return [replace(base, name=f"{base.name}-fold{fold}", leave_out_fold=fold) for fold in folds]
