"""Job-file section of an encoder that is trained together with the models that read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema, model_validator

from multistill.config.base import Section, execution

_OF_ALL: Mapping[str, Any] = {
    "top": None,
    "layer_decay": 1.0,
    "unfreeze_epochs": 0,
    "gradient_checkpointing": False,
    "time_mask": 0.0,
    "feature_mask": 0.0,
}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "full": {**_OF_ALL, "learning_rate": 2e-5},
    "last": {**_OF_ALL, "learning_rate": 1e-4, "layers": None},
    "lora": {
        **_OF_ALL,
        "learning_rate": 1e-4,
        "layers": None,
        "rank": 8,
        "alpha": 16.0,
        "untrained": False,
    },
    "adapter": {
        **_OF_ALL,
        "learning_rate": 1e-4,
        "layers": None,
        "bottleneck": 64,
        "layer_norms": False,
        "untrained": False,
    },
}
"""The fields of each kind, with what they are where the job file leaves them out."""


def kind_with(field: str) -> dict[str, Any]:
    """Settings of a kind of training that has this field, the first that has."""
    kind = next(kind for kind, names in _FIELDS.items() if field in names)
    return {"kind": kind}


class EncoderTrainingConfig(Section):
    """What of an encoder is trained: `none`, `full`, `last-4` (layers), `lora` or `adapter`.

    With `none`, states are computed once and kept. Every model that reads a trained encoder
    trains a copy of its own.
    """

    shorthand: ClassVar = ("kind",)

    kind: Annotated[
        Literal["none", "full", "last", "lora", "adapter"],
        # As a job file may have it, with the number of layers.
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "enum": ["none", "full", "last", "lora", "adapter"]},
                    {"type": "string", "pattern": "^last-[1-9][0-9]*$"},
                ]
            }
        ),
    ] = Field(
        "none",
        description="`last-K`: the top K layers; `lora` (Hu et al. 2021) and `adapter` (Houlsby et "
        "al. 2019) train small matrices beside frozen weights",
    )
    layers: int | None = Field(
        None,
        ge=1,
        description="K of `last-K`; `lora`, `adapter`: the top K layers, default: all",
    )
    top: int | None = Field(
        None,
        ge=1,
        description="of the layers that take part, train only this many from the top; default: "
        "all. A search can choose it, since the store keeps the same",
    )
    rank: int | None = Field(None, ge=1, description="`lora`: of the update; default: 8")
    alpha: float | None = Field(
        None, gt=0, description="`lora`: the update is scaled by alpha / rank; default: 16"
    )
    bottleneck: int | None = Field(None, ge=1, description="`adapter`: its width; default: 64")
    layer_norms: bool = Field(
        False, description="`adapter`: also train the layer norms of the layers, as published"
    )
    untrained: bool = Field(
        False,
        description="`lora`, `adapter`: beside frozen weights drawn at random, to see what those "
        "of the checkpoint are worth; not with `layers`",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="of the encoder, after warm-up; default: 1e-4, `full`: 2e-5"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor of the learning rate from one layer to the one below; default: 1",
    )
    unfreeze_epochs: int | None = Field(
        None,
        ge=0,
        description="epochs until the next layer below starts to train, from the top; the top one "
        "starts after as many; default: 0, all from the start",
    )
    gradient_checkpointing: bool = execution(
        False, description="compute the states inside the layers twice instead of keeping them"
    )
    time_mask: float = Field(
        0.0, ge=0, lt=1, description="share of the frames masked in training (SpecAugment)"
    )
    feature_mask: float = Field(
        0.0, ge=0, lt=1, description="share of the features masked in training (SpecAugment)"
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is trained."""
        return self.kind != "none"

    @model_validator(mode="before")
    @classmethod
    def _decide(cls, value: Any) -> Any:
        """Read `last-4`, and give every field that the kind has its default."""
        # Pydantic runs this before the base's validator of short forms.
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value
        values = dict(value)
        found = re.fullmatch(r"last-(\d+)", str(values.get("kind", "none")))
        if found:
            number = int(found[1])
            if number < 1 or values.get("layers") not in (None, number):
                raise ValueError(
                    f"`{values['kind']}` is no number of layers to train; write last-1, last-2 or "
                    "more, and no `layers` beside it"
                )
            values.update(kind="last", layers=number)
        for name, default in _FIELDS.get(str(values.get("kind", "none")), {}).items():
            if values.get(name) is None and default is not None:
                values[name] = default
        return values

    @model_validator(mode="after")
    def _check(self) -> EncoderTrainingConfig:
        if self.kind == "last" and self.layers is None:
            raise ValueError("`last` needs the number of layers to train; write last-1 or more")
        if self.top is not None and self.layers is not None and self.top > self.layers:
            raise ValueError(
                f"`top: {self.top}` is more than the {self.layers} layers that take part; lower "
                "it, or raise `layers`"
            )
        if self.untrained and self.layers is not None:
            raise ValueError(
                "`untrained` draws all layers anew, and with `layers` the store keeps states of "
                "the checkpoint below them; remove one of the two"
            )
        for name, field in type(self).model_fields.items():
            changed = getattr(self, name) != field.default
            if name != "kind" and changed and name not in _FIELDS[self.kind]:
                kinds = ", ".join(kind for kind, names in _FIELDS.items() if name in names)
                raise ValueError(
                    f"`{name}` is a setting of {kinds}, and `train` is `{self.kind}`; remove it, "
                    "or set another `kind`"
                )
        return self
