"""The base of every section of the job file: strict, frozen, with an identity."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from multistill.config.secrets import has_secret

Location = tuple[str | int, ...]
"""A location in the job file, e.g. `("students", 0, "model")`."""


def execution(default: Any, **constraints: Any) -> Any:
    """A field that does not change any result, only how it is computed."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


def _without_secret(value: str) -> str:
    if has_secret(value):
        raise ValueError(
            "holds a password or a token, and job files are recorded with every run; remove it and "
            "set it through the environment"
        )
    return value


Address = Annotated[str, AfterValidator(_without_secret)]


class Section(BaseModel):
    """A part of the job file. Unknown keys are errors; values are frozen once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    shorthand: ClassVar[tuple[str, ...]] = ()
    """Fields that get the text where a text stands in place of the section."""
    switch: ClassVar[str] = ""
    """Field that gets the value where `true` or `false` stands in place of the section."""

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        if cls.shorthand and isinstance(value, str):
            return dict.fromkeys(cls.shorthand, value)
        return {cls.switch: value} if cls.switch and isinstance(value, bool) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The section's schema, with the text or the boolean that may stand in its place."""
        reference = handler(core_schema)
        short_forms = {"string": ", ".join(cls.shorthand), "boolean": cls.switch}
        others = [
            {"type": kind, "description": f"the same as {fields}"}
            for kind, fields in short_forms.items()
            if fields
        ]
        if others:
            schema = handler.resolve_ref_schema(reference)
            section = dict(schema)
            schema.clear()
            schema.update(title=section["title"], anyOf=[section, *others])
        return reference

    def identity(self) -> dict[str, Any]:
        """What decides the result: all fields but those marked `execution`, as JSON values."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            values[name] = _identity_of(getattr(self, name))
        return values


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_identity_of(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    return value
