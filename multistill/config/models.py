"""Job-file sections of models and their training: teacher, distillation, students."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from multistill.config.augmentation import AugmentationConfig
from multistill.config.base import Section, execution
from multistill.config.names import FolderName
from multistill.config.networks import EndToEndConfig, PooledConfig, ValenceArousalConfig


class HeadConfig(Section):
    """A preset, and the fields that networks share or that are of emotion heads."""

    preset: str = Field(description="name of a preset; the keys below override its values")
    fusion: Literal["crossmodal", "concat", "cross-attention", "mixer"] | None = Field(
        None, description="how speech and text are joined"
    )
    width: int | None = Field(None, ge=8, description="of the states inside the head")
    heads: int | None = Field(None, ge=1, description="attention heads; they divide `width`")
    layers: int | None = Field(None, ge=1, description="transformer layers per stack")
    feedforward: int | None = Field(None, ge=8, description="width inside a feed-forward block")
    classifier: int | None = Field(None, ge=8, description="width of the classifier's hidden layer")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="in the transformer layers")
    classifier_dropout: float | None = Field(
        None, ge=0.0, lt=1.0, description="before both linear layers of the classifier"
    )
    modality_dropout: float | None = Field(
        None, ge=0.0, lt=1.0, description="share of training clips that lose speech or text"
    )
    pooling: (
        Literal["published", "mean", "attention", "statistics", "attentive-statistics"] | None
    ) = Field(None, description="of the states of a clip into one; `published`: see docs/models.md")
    standardize: Literal["none", "encoder", "dimension", "global"] | None = Field(
        None,
        description="states by mean and deviation of the training part: per dimension, all "
        "alike, or as the encoder asks",
    )
    paths: Literal["deep", "wide", "both"] | None = Field(
        None,
        description="from states to logits: the transformer, a linear layer on pooled statistics, "
        "or their sum",
    )
    wide_dropout: float | None = Field(
        None, ge=0.0, lt=1.0, description="on the pooled statistics of the wide path"
    )
    front: Literal["linear", "convolutional"] | None = Field(
        None,
        description="from speech states to the head: a projection, or convolutions over time and "
        "frequency, for log-mel energies",
    )
    front_channels: int | None = Field(
        None,
        ge=1,
        description="over time and frequency, of a convolutional front; of `fe2e` and `mesm` "
        "presets: of the first convolutions",
    )
    front_blocks: int | None = Field(None, ge=1, description="over time, of a convolutional front")
    audio_stride: int | None = Field(
        None, ge=1, description="neighbouring audio frames averaged into one before the head"
    )
    context_turns: int | None = Field(
        None, ge=0, le=32, description="previous turns of the dialogue that the head reads"
    )
    layer_mix: Literal["none", "weighted", "normalized"] | None = Field(
        None,
        description="of several stored layers (`combine: concat`): side by side, their sum with "
        "learnt weights, or that of the layers normalised each; docs/models.md",
    )
    speech_encoder: FolderName | None = Field(
        None,
        description="the only one of several speech encoders that is read "
        "(features.speech.additional); default: all",
    )
    speech_layer: int | None = Field(
        None, description="the only one of features.speech.layers that is read (`combine: concat`)"
    )
    text_layer: int | None = Field(None, description="the same, of features.text.layers")
    train_encoder: bool | None = Field(
        None,
        description="false: an encoder that the job trains (features.speech.train) stays as it is "
        "for this model; default: true",
    )
    encoder_layers: int | None = Field(
        None,
        ge=1,
        description="of a slimmed copy of the speech encoder that this student trains from waves: "
        "its lowest layers (`features.speech.train: full`)",
    )
    encoder_heads: int | None = Field(
        None, ge=1, description="attention heads that are kept in each of them, of largest norm"
    )
    encoder_feedforward: int | None = Field(
        None, ge=1, description="feed-forward units that are kept in each of them, of largest norm"
    )


class ModelConfig(EndToEndConfig, ValenceArousalConfig, PooledConfig, HeadConfig):
    """A preset by name (`multistill models`); every other key overrides one of its values."""

    shorthand: ClassVar = ("preset",)

    def overrides(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump().items() if k != "preset" and v is not None}


class TrainSection(Section):
    """How a teacher or a student is trained, as the job file says it.

    What is left out of `epochs`, `batch_size` and `learning_rate` follows from the preset and the
    number of training clips: `multistill.training.defaults` turns a section into a `TrainConfig`.
    """

    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the training clips; default: by preset and number of clips",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="utterances per optimiser step, over all workers; default: by preset",
    )
    accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step and worker")
    learning_rate: float | None = Field(None, gt=0, description="after warm-up; default: by preset")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, on all parameters")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    average_epochs: float = Field(
        0.0,
        ge=0,
        description="the result is the running average of the weights over about this many epochs; "
        "0: the weights themselves",
    )
    loss: Literal["soft-cross-entropy", "cross-entropy", "mse", "focal", "one-vs-rest"] = Field(
        "soft-cross-entropy", description="against the labels; formulae in docs/models.md"
    )
    dimension_loss: Literal["ccc", "mse", "rmse"] = Field(
        "ccc", description="of valence, arousal and dominance (`tasks`); formulae in docs/models.md"
    )
    label_source: Literal["shares", "winner"] = Field(
        "shares", description="target: the shares of the votes, or the class with the most"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the target that is spread evenly over all classes; not of the "
        "teacher's targets",
    )
    class_weights: Literal["none", "inverse", "effective", "odds"] = Field(
        "none",
        description="weights of the loss; `effective`: Cui et al. 2019; `odds`: of one-vs-rest, "
        "clips of the rest over those of the class",
    )
    oversample: bool = Field(False, description="draw clips so that all classes weigh the same")
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    metric: Literal["macro_f1", "uar", "weighted_f1", "accuracy", "loss", "ccc"] | None = Field(
        None,
        description="on validation; its best epoch is the result; `ccc`: mean over the dimensions "
        "of `tasks`; default: `macro_f1`, or `ccc` without classes",
    )
    select_window: int = Field(
        1,
        ge=1,
        description="epochs that are compared by the mean `metric` of this many: the epoch itself "
        "and those before it",
    )
    patience: int | None = Field(None, ge=1, description="epochs without gain until training stops")
    max_frames: int | None = Field(None, ge=1, description="audio frames read; 512 as published")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 on GPUs that support it, else float32"
    )
    compile: bool = execution(False, description="use torch.compile; the first epoch waits for it")
    batch_frames: int | None = execution(
        None, ge=1, description="padded audio frames per micro-batch; larger batches are split"
    )
    workers: int = execution(1, ge=1, description="data-parallel workers")
    gpus_per_worker: float | None = execution(
        None, ge=0, description="default: one if the cluster has any"
    )
    cpus_per_worker: float = execution(1.0, gt=0, description="logical CPUs of each worker")
    max_failures: int = execution(2, ge=0, description="restarts from the last checkpoint")

    @property
    def splits_batches(self) -> bool:
        """Whether the rows of a step are not computed together, by one worker."""
        return self.workers > 1 or bool(self.batch_frames) or self.accumulation > 1

    @model_validator(mode="after")
    def _check(self) -> TrainSection:
        if self.class_weights == "odds" and self.loss != "one-vs-rest":
            raise ValueError(
                "`class_weights: odds` weighs a class against the rest, which `loss: "
                f"{self.loss}` does not tell apart; set `loss: one-vs-rest`, or `class_weights: "
                "inverse`"
            )
        gpus = self.gpus_per_worker
        if gpus is not None and 0 < gpus < 1 and self.workers > 1:
            raise ValueError(
                "a fraction of a GPU works for one worker only (NCCL refuses a shared GPU); "
                "set `workers: 1` or `gpus_per_worker: 1`"
            )
        return self


class TrainConfig(TrainSection):
    """A training with every number decided."""

    epochs: int = Field(ge=1)
    metric: Literal["macro_f1", "uar", "weighted_f1", "accuracy", "loss", "ccc"] = "macro_f1"
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class TeacherConfig(Section):
    """The model that the students learn from, and how it is trained."""

    shorthand: ClassVar = ("model",)

    model: ModelConfig = Field(default_factory=lambda: ModelConfig(preset="small-teacher"))
    models: list[ModelConfig] = Field(
        default_factory=list,
        max_length=10,
        description="in place of `model`: several that make an ensemble, e.g. one for speech and "
        "one for text",
    )
    train: TrainSection = Field(default_factory=TrainSection)
    seeds: int = Field(1, ge=1, le=20, description="several seeds (of each) make an ensemble")

    @property
    def members(self) -> dict[str, ModelConfig]:
        """The models by name: `teacher`, or of several `teacher-1`, `teacher-2`, ..."""
        if not self.models:
            return {"teacher": self.model}
        return {f"teacher-{number}": each for number, each in enumerate(self.models, start=1)}

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `model` where `models` stands in its place, so that it can be read again."""
        values: dict[str, Any] = handler(self)
        if self.models:
            del values["model"]
        return values

    @model_validator(mode="after")
    def _check(self) -> TeacherConfig:
        if self.models and "model" in self.model_fields_set:
            raise ValueError(
                "`models` stands in place of `model`, and both are set; keep one of them"
            )
        return self


def canonical_loss(name: Any) -> Any:
    """Map the synonym `hinton` of the distillation loss `kd` (Hinton 2015) to `kd`."""
    return "kd" if name == "hinton" else name


STATE_WEIGHTS = ("hint_weight", "cka_weight", "relation_weight", "sequence_weight")
"""Weights of `distillation` that need the teacher's states, beyond its outputs."""


class DistillationConfig(Section):
    """weight * teacher's loss + (1 - weight) * label loss.

    The teacher's loss is T^2 * KL(teacher_T || student_T) (`kd`, Hinton 2015) by default. Losses
    on representations are added to this sum, each with its own weight.
    """

    loss: Literal["kd", "two-mse", "dkd", "dist"] = Field(
        "kd", description="on the teacher's outputs; formulae in docs/models.md"
    )
    temperature: float = Field(2.0, gt=0, description="softens both distributions")
    weight: float = Field(0.5, ge=0, le=1, description="of the teacher's loss; 0: no teacher")
    standardize: bool = Field(False, description="logit standardisation (Sun 2024)")
    dkd_alpha: float = Field(1.0, ge=0, description="`dkd`: weight of the target-class term")
    dkd_beta: float = Field(
        2.0, ge=0, description="`dkd`: weight of the other classes; 8 in the paper (100 classes)"
    )
    hint_weight: float = Field(
        0.0, ge=0, description="of the squared distance to the teacher's pooled state (FitNets)"
    )
    cka_weight: float = Field(
        0.0, ge=0, description="of 1 - linear CKA of the pooled states; needs batches of 64"
    )
    relation_weight: float = Field(
        0.0, ge=0, description="of distances and angles between pooled states in a batch (RKD)"
    )
    sequence_weight: float = Field(
        0.0,
        ge=0,
        description="of the squared distance to the teacher's states of frames and tokens before "
        "they are pooled",
    )
    schedule: Literal["fixed", "rise", "fall"] = Field(
        "fixed", description="of all weights over training: `rise` starts at 0, `fall` ends at 0"
    )
    schedule_share: float = Field(
        0.2, gt=0, le=1, description="duration of the rise or fall as a share of the training"
    )
    targets: Literal["in-sample", "out-of-fold"] = Field(
        "out-of-fold",
        description="the target of a training clip comes from a teacher that was not trained on "
        "it (one more teacher per fold), or from the one of all clips, which is over-confident",
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _canonical_loss(cls, value: Any) -> Any:
        return canonical_loss(value)

    @property
    def reads_states(self) -> bool:
        """Whether the student learns from the teacher's states, not from its outputs alone."""
        return any(getattr(self, name) > 0 for name in STATE_WEIGHTS)


class StudentConfig(Section):
    """A small model; it is trained with the teacher, and alone as its control."""

    shorthand: ClassVar = ("name", "model")

    name: FolderName = Field(description="in tables, files and MLflow")
    model: ModelConfig
    train: TrainSection = Field(default_factory=TrainSection)
