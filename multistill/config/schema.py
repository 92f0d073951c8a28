"""The job file described for machines and people: its JSON schema, and all sections with places."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from multistill.config import JobConfig, Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors and other tools; YAML must be read first."""
    schema = JobConfig.model_json_schema()
    return {"$schema": DIALECT, **schema, "title": "multistill job file"}


def sections() -> dict[type[Section], list[str]]:
    """Every section of a job file, with the places where it stands: `students[].train`."""
    places: dict[type[Section], list[str]] = {}
    for place, section in _walk("", JobConfig):
        places.setdefault(section, []).append(place)
    return places


def _walk(place: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield place, section
    for name, field in section.model_fields.items():
        for suffix, inner in sections_of(field.annotation):
            yield from _walk(f"{place}.{name}{suffix}".lstrip("."), inner)


def sections_of(annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    """The sections inside a field's type, each with what its place adds to the field's name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield "", annotation
        return
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    suffix = "[]" if origin is list else ".NAME" if origin is dict else ""
    for argument in arguments:
        for rest, section in sections_of(argument):
            yield suffix + rest, section
