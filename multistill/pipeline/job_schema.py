"""What the job file accepts at each place, from the typed config."""

from __future__ import annotations

import types
import typing
from typing import Any

from multistill.config import JobConfig, Section
from multistill.config.base import Location


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


def types_at(location: Location) -> set[type]:
    """The plain types that the config accepts for the value at this location."""
    for end in range(len(location) - 1, -1, -1):
        section = section_at(location[:end])
        if section is not None:
            field = section.model_fields.get(str(location[end]))
            return accepted_types(
                _inside(field.annotation, len(location) - end - 1) if field else None
            )
    return set()


def _inside(annotation: Any, depth: int) -> Any:
    """The annotation of what stands so deep in lists and mappings: of `dict[str, int]`, `int`."""
    for _ in range(depth):
        members = typing.get_args(annotation)
        if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            nested = next((a for a in members if typing.get_origin(a) in {dict, list}), None)
            members = typing.get_args(nested)
        annotation = members[-1] if members else annotation
    return annotation


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
