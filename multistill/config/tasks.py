"""The `tasks` of a job: what models predict, and how much each task weighs in the loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from multistill.config.base import Section

DIMENSIONS = ("valence", "arousal", "dominance")
"""Emotional dimensions, in the order of a model's outputs."""
SCALE = (1.0, 5.0)
"""The scale of dimensions in the manifest, and of models' outputs."""


def _weight(description: str) -> Any:
    return Field(None, gt=0, description=description)


class TasksConfig(Section):
    """Task -> weight of its loss. A list of tasks is short for weights of 1.

    `tasks: [classes, valence]`, `tasks: {classes: 1.0, valence: 0.5}`, `tasks: [valence, arousal]`.
    """

    classes: float | None = _weight("the emotion classes; the default, with weight 1")
    valence: float | None = _weight("negative to positive")
    arousal: float | None = _weight("calm to excited")
    dominance: float | None = _weight("weak to strong")

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            return value
        names = [name for name in value if isinstance(name, str)]
        if len(names) < len(value):
            raise ValueError(
                "a list of tasks has names only; write weights as {classes: 1.0, valence: 0.5}"
            )
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"`{repeated}` stands in the list of tasks twice; remove one")
        return dict.fromkeys(names, 1.0)

    @model_validator(mode="after")
    def _check(self) -> TasksConfig:
        if not self.weights():
            raise ValueError(
                "no task is left; name `classes`, a dimension "
                f"({', '.join(DIMENSIONS)}) or several of them"
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The section's schema, or a list of names, or one name."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        section = dict(schema)
        names = {"type": "string", "enum": list(section["properties"])}
        listed = {"type": "array", "items": names, "minItems": 1, "uniqueItems": True}
        schema.clear()
        schema.update(title=section["title"], anyOf=[section, listed, names])
        return reference

    def weights(self) -> dict[str, float]:
        """The tasks of the job with their weights, classes first."""
        values = {name: getattr(self, name) for name in ("classes", *DIMENSIONS)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def metric(self) -> Literal["macro_f1", "ccc"]:
        """The validation metric that epochs are chosen by, unless a job names another."""
        return "ccc" if self.classes is None else "macro_f1"

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions among the tasks, in the order of a model's outputs."""
        return tuple(name for name in DIMENSIONS if getattr(self, name) is not None)
