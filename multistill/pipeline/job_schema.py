"""What the job file accepts at each place, from the typed config."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from multistill.config import JobConfig, Section
from multistill.pipeline.recipes import Location


def section_at(location: Location) -> type[Section] | None:
    """The section that describes the mapping at this location of the file."""
    current: Any = JobConfig
    for step in location:
        if _is_section(current):
            field = current.model_fields.get(str(step))
            if field is None:
                return None
            current = field.annotation
        else:
            arguments = [a for a in typing.get_args(current) if a is not type(None)]
            if not arguments:
                return None
            current = arguments[-1]
        while isinstance(current, types.UnionType) or typing.get_origin(current) is typing.Union:
            members = [a for a in typing.get_args(current) if a is not type(None)]
            current = next(filter(_is_section, members), members[0])
    return current if _is_section(current) else None


def field_at(location: Location) -> FieldInfo | None:
    """The field of the config that holds the value at this location."""
    for end in range(len(location) - 1, -1, -1):
        section = section_at(location[:end])
        if section is not None:
            return section.model_fields.get(str(location[end]))
    return None


def accepted_types(annotation: Any) -> set[type]:
    """The plain types inside an annotation: `dict[str, list[int] | None]` has str, int, None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {type(value) for value in arguments}
    if origin is typing.Annotated:
        return accepted_types(arguments[0])
    if arguments:
        return set().union(*map(accepted_types, arguments))
    return {annotation} if isinstance(annotation, type) else set()


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
