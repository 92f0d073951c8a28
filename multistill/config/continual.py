"""The `continual` section of the job file: corpora learnt one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from multistill.config.base import Section
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.config.models import ModelConfig, TrainSection

Method = Literal[
    "alone",
    "finetune",
    "ewc",
    "replay",
    "head-only",
    "adapter",
    "adapter-untrained",
    "lora",
    "joint",
]
OWN_WEIGHTS = frozenset({"adapter", "adapter-untrained", "lora"})
"""Methods that give every corpus weights of its own beside encoders that stay as they are."""

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Variant:
    """A row of the tables: a method with its settings.

    Attributes:
        name: in tables and of models.
        weight: of the penalty of `ewc`.
    """

    name: str
    method: Method
    weight: float = 0.0


class EwcConfig(Section):
    """Elastic weight consolidation (Kirkpatrick et al. 2017)."""

    weights: list[Weight] = Field(
        default_factory=lambda: [5000.0],
        min_length=1,
        description="lambda of the penalty lambda / 2 * sum F (theta - theta*)^2; each is a row of "
        "the tables",
    )
    fisher: Literal["model", "labels"] = Field(
        "model",
        description="squared gradients of the log-probabilities of all classes, weighted by the "
        "model's own distribution, or of the labels alone (the empirical Fisher information)",
    )
    clips: int | None = Field(
        None,
        ge=1,
        description="training clips of each earlier corpus that the information is averaged over, "
        "drawn by the seed; default: all",
    )


class ContinualConfig(Section):
    """One model learns several corpora, one after another; after each, all of them are tested.

    What `finetune`, `ewc`, `replay` and `joint` train of the encoders is what
    `features.speech.train` and `features.text.train` say.
    """

    orders: list[list[str]] = Field(
        default_factory=list,
        description="names of the corpora in the order in which they are learnt; default: the "
        "order of `corpora`, and its reverse",
    )
    methods: list[Method] = Field(
        ["alone", "finetune", "ewc", "replay", "head-only", "joint"],
        min_length=1,
        description="`alone`: each corpus on its own; `finetune`: all weights go on learning; "
        "`ewc`: with a penalty on changes; `replay`: with clips of earlier corpora; `head-only`: "
        "the classifier alone goes on learning; `adapter`, `lora`: small weights per corpus in "
        "frozen encoders; `adapter-untrained`: in encoders with random weights; `joint`: all "
        "corpora so far at once",
    )
    head: Literal["shared", "per-task"] = Field(
        "shared",
        description="one classifier for all corpora, or one per corpus; `adapter` and `lora` have "
        "one per corpus, `joint` has one",
    )
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(preset="small-teacher"))
    train: TrainSection = Field(default_factory=TrainSection)
    ewc: EwcConfig = Field(default_factory=EwcConfig)
    replay_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="`replay`: of the training clips of each class of each earlier corpus",
    )
    adapter_model: ModelConfig | None = Field(
        None,
        description="of `adapter` and `adapter-untrained`, e.g. `pooled-strided`; default: `model`",
    )
    bottleneck: int = Field(64, ge=1, description="`adapter`: width of the adapters")
    rank: int = Field(8, ge=1, description="`lora`: of the updates")

    @model_validator(mode="after")
    def _check(self) -> ContinualConfig:
        twice = next((name for name in self.methods if self.methods.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`methods` lists `{twice}` twice; remove one")
        if len(set(self.ewc.weights)) < len(self.ewc.weights):
            raise ValueError("`ewc.weights` lists a number twice; remove one")
        if self.head == "per-task" and "replay" in self.methods:
            raise ValueError(
                "`replay` trains one classifier on clips of several corpora, and `head` is "
                "`per-task`; set `head: shared`, or remove `replay` from `methods`"
            )
        return self

    def variants(self) -> Iterator[Variant]:
        """The methods, `ewc` once for each of its weights."""
        for method in self.methods:
            if method == "ewc":
                for weight in self.ewc.weights:
                    # MLflow takes no plus sign in a name: 1e+06.
                    number = f"{weight:g}".replace("+", "")
                    yield Variant(f"ewc {number}", method, weight)
            else:
                yield Variant(method, method)

    def model_of(self, method: Method) -> ModelConfig:
        """What stands behind the encoders of a method."""
        own = self.adapter_model if method in ("adapter", "adapter-untrained") else None
        return own or self.model

    def adapted(self, method: Method) -> EncoderTrainingConfig | None:
        """What a method trains of encoders in place of `features.*.train`; None: what that says."""
        values: Mapping[str, Any]
        if method == "lora":
            values = {"kind": "lora", "rank": self.rank, "alpha": 2.0 * self.rank}
        elif method in OWN_WEIGHTS:
            values = {"kind": "adapter", "bottleneck": self.bottleneck, "layer_norms": True}
        else:
            return None
        return EncoderTrainingConfig.model_validate(
            {**values, "untrained": method == "adapter-untrained"}
        )
