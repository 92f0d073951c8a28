"""`TrainingTask`: the settings of one training and the paths of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multistill.config import DistillationConfig, TrainConfig
from multistill.encoders.source import EncoderSource
from multistill.errors import UsageError
from multistill.models.files import Role
from multistill.models.spec import Encoder, ModelSpec
from multistill.workspace import file_name

if TYPE_CHECKING:
    from multistill.encoders.trainable import TrainableEncoder

Trained = Literal["all", "classifier"]


@dataclass(frozen=True)
class TrainingTask:
    """One model to train.

    Attributes:
        name: folder name of the result in the launcher's `out`.
        role: purpose of the model. A control is a student trained without a teacher.
        seed: of weights, batches and dropout.
        manifest: absolute path of `manifest.parquet` or its folder.
        features: absolute path of the feature store.
        statistics: folder of the training states' statistics; None: computed when the training
            starts.
        copies: store of distorted copies of the training clips; None: there are none.
        leave_out_fold: train on the other folds only. Validation rows of all folds are kept: no
            model is trained on them, so no teacher can leak them.
        soft_targets: a teacher's Parquet file; set together with `distillation`.
        label_share: share of the training clips whose label is known, drawn per class by `seed`
            (`multistill.training.labelled`); the others are not trained on.
        unlabelled: train on the clips whose label is not given too, towards the teacher's output
            alone. Clips of corpora without labels need no setting: every task with `soft_targets`
            is trained on them.
        tasks: weight of each task in the loss: `classes`, and the dimensions of `spec`.
        encoders: that the model trains, of those that it reads.
        initial: model folders whose weights the model starts from: name of a module of the model
            (empty: the whole) -> absolute path of a folder in the workspace's model store.
        corpora: share of the training clips of each corpus that is read, drawn per class by
            `seed`. Validation has those of which all are read. Empty: all of all corpora.
        new_classifier: leave the classifier as it is drawn, whatever `initial` says.
        trains: `classifier`: of the model, only what maps pooled states to outputs is trained.
        fisher: folder of the Fisher information of earlier corpora
            (`multistill.training.consolidation`), which holds weights at where they start.
        fisher_weight: of that penalty.
    """

    name: str
    role: Role
    spec: ModelSpec
    train: TrainConfig
    seed: int
    manifest: str
    features: str
    statistics: str | None = None
    copies: str | None = None
    leave_out_fold: int | None = None
    soft_targets: str | None = None
    distillation: DistillationConfig | None = None
    label_share: float = 1.0
    unlabelled: bool = False
    tasks: Mapping[str, float] = field(default_factory=lambda: {"classes": 1.0})
    encoders: Mapping[Encoder, EncoderSource] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    corpora: Mapping[str, float] = field(default_factory=dict)
    new_classifier: bool = False
    trains: Trained = "all"
    fisher: str | None = None
    fisher_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.label_share <= 1:
            raise UsageError(
                f"training task `{self.name}`: label_share is {self.label_share:g}; set a share "
                "above 0 and at most 1"
            )
        predicted = ("classes",) * (self.spec.num_classes > 0) + self.spec.dimensions
        if set(predicted) != set(self.tasks):
            raise UsageError(
                f"training task `{self.name}` weighs {', '.join(self.tasks)}, and its model "
                f"predicts {', '.join(predicted)}; give each of these a weight in `tasks`"
            )
        if self.encoders and self.spec.context_turns:
            raise UsageError(
                f"training task `{self.name}`: a model with context_turns reads states of previous "
                "turns, which a trained encoder changes at every step; set context_turns to 0, or "
                "`train: none` in features.speech and features.text"
            )
        if self.spec.slim.given and "speech" not in self.encoders:
            raise UsageError(
                f"training task `{self.name}`: a slimmed encoder is trained from waves, and the "
                "task has no speech encoder; set `train: full` in features.speech, or no sizes "
                "`encoder_...`"
            )
        if "speech" in self.encoders:
            # Derived, so that a search that changes the sizes needs to know of the spec alone.
            source = self.encoders["speech"].slimmed(self.spec.slim)
            object.__setattr__(self, "encoders", {**self.encoders, "speech": source})
        augmented = self.train.augmentation
        mixes_states = augmented.mixup > 0 and not augmented.mixes_pooled
        if self.encoders and (augmented.changes_states or mixes_states):
            raise UsageError(
                f"training task `{self.name}`: train.augmentation changes what the store keeps, "
                "which is the input of an encoder that is trained; use `mixup_of: pooled` alone, "
                "or `train: none` in features.speech and features.text"
            )
        if self.unlabelled and self.soft_targets is None:
            raise UsageError(
                f"training task `{self.name}` reads clips without label, which only a teacher can "
                "give a target; set `soft_targets` and `distillation`, or `unlabelled: false`"
            )
        if (self.soft_targets is None) != (self.distillation is None):
            raise UsageError(
                f"training task `{self.name}` sets only one of `soft_targets` and "
                "`distillation`; set both for a distilled student, neither for any other model"
            )

    def folder(self, out: Path) -> Path:
        """The task's folder in the folder `out` of all tasks."""
        return out / file_name(self.name)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the weights: no names, no paths, no resources."""
        return {
            "role": self.role,
            "model": self.spec.to_dict(),
            "train": self.train.identity(),
            "seed": self.seed,
            "leave_out_fold": self.leave_out_fold,
            "distillation": self.distillation.identity() if self.distillation else None,
            "label_share": self.label_share,
            "unlabelled": self.unlabelled,
            "tasks": dict(self.tasks),
            "encoders": {name: source.identity() for name, source in self.encoders.items()},
            "initial": {name: Path(folder).name for name, folder in sorted(self.initial.items())},
            "corpora": dict(self.corpora),
            "new_classifier": self.new_classifier,
            "trains": self.trains,
            "fisher_weight": self.fisher_weight,
        }

    def load_encoders(self) -> dict[Encoder, TrainableEncoder]:
        """The encoders before their training, on the CPU.

        Raises:
            MultistillError: a base cannot be loaded, or cannot be trained in this way.
        """
        return {name: source.load() for name, source in self.encoders.items()}

    def control(self, name: str) -> TrainingTask:
        """The same training without a teacher, with equal settings, labels, budget and seed."""
        return replace(
            self,
            name=name,
            role="control",
            soft_targets=None,
            distillation=None,
            unlabelled=False,
        )

    def with_train(self, **settings: Any) -> TrainingTask:
        """The task with some fields of `train` replaced and validated."""
        values = {**self.train.model_dump(), **settings}
        return replace(self, train=TrainConfig.model_validate(values))

    def to_dict(self) -> dict[str, Any]:
        """The task as JSON values, for search.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "spec": self.spec.to_dict(),
            "tasks": dict(self.tasks),
            "corpora": dict(self.corpora),
            "train": self.train.model_dump(mode="json"),
            "distillation": self.distillation and self.distillation.model_dump(mode="json"),
            "encoders": {name: source.to_dict() for name, source in self.encoders.items()},
            "initial": dict(self.initial),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingTask:
        """Inverse of `to_dict`.

        Raises:
            UsageError: an unknown field.
            ValueError: an invalid section.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"a training task has no field `{unknown[0]}`")
        distillation, encoders = values.get("distillation"), values.get("encoders", {})
        return cls(
            **{
                **values,
                "spec": ModelSpec.from_dict(values["spec"]),
                "train": TrainConfig.model_validate(values["train"]),
                "distillation": distillation and DistillationConfig.model_validate(distillation),
                "encoders": {
                    name: EncoderSource.from_dict(name, source) for name, source in encoders.items()
                },
            }
        )


def seed_tasks(base: TrainingTask, seeds: int) -> list[TrainingTask]:
    """The members of an ensemble: one training per seed. A single seed keeps the name."""
    if seeds == 1:
        return [base]
    return [
        replace(base, name=f"{base.name}-seed{offset}", seed=base.seed + offset)
        for offset in range(seeds)
    ]


def fold_tasks(base: TrainingTask, folds: Iterable[int]) -> list[TrainingTask]:
    """One training per left-out fold, for out-of-fold soft targets (cross-fitting)."""
    return [replace(base, name=f"{base.name}-fold{fold}", leave_out_fold=fold) for fold in folds]
