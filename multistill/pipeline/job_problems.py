"""What is wrong with the values of a job, in sentences: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from pydantic import ValidationError
from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from multistill.config.base import Location
from multistill.pipeline.job_schema import section_at, types_at
from multistill.pipeline.job_values import JobValues
from multistill.pipeline.job_yaml import (
    Problem,
    in_quotes,
    looks_like_another_number,
    name_of,
    read_as,
)


def misread(values: JobValues) -> dict[Location, str]:
    """Values that would count as another number than they look like, with a sentence for each."""
    sentences = {}
    for location, node in values.scalars():
        boolean = node.tag.endswith(":bool")
        if not boolean and not looks_like_another_number(node):
            continue
        types = types_at(location)
        if not types & {int, float} or (boolean and bool in types):
            continue
        remedy = (
            "where a number is expected"
            if boolean
            else "write the number without leading zeros and colons"
        )
        sentences[location] = (
            f"{name_of(location)}: YAML reads `{node.value}` as {read_as(node)}"
            f"{',' if boolean else ';'} {remedy}"
        )
    return sentences


def describe(error: ValidationError, values: JobValues, told: Set[Location]) -> Iterator[Problem]:
    """The problems of sections, one for each value; none for values in `told`."""
    seen = set(told)
    for item in error.errors():
        location: Location = tuple(item["loc"])
        if item["type"] not in {"missing", "extra_forbidden"}:
            # A union adds the types it tried to the location, with a problem for each.
            location = _existing(values.data, location)
            if location in seen:
                continue
        seen.add(location)
        yield values.problem(location, _sentence(item, location, values))


def _sentence(error: Mapping[str, Any], location: Location, values: JobValues) -> str:
    kind, message, context = error["type"], error["msg"], error.get("ctx") or {}
    name = name_of(location)
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "missing":
        return f"`{name}` is missing"
    if kind == "value_error":
        sentence = str(context.get("error") or message)
        return f"{name}: {sentence}" if name else sentence
    node = values.node(location)
    written = node.value if isinstance(node, ScalarNode) else None
    if isinstance(node, ScalarNode) and read_as(node) == "no value":
        quotes = f", or put it in quotes: '{written}'" if kind == "string_type" and written else ""
        return f"`{name}` has no value; write one, or remove the key{quotes}"
    if kind == "string_type" and isinstance(node, ScalarNode):
        return f"{name}: {in_quotes(node)}"
    if kind == "literal_error":
        choices = [c.strip("'") for c in context["expected"].replace(" or ", ", ").split(", ")]
        return (
            f"{name}: {_what_stands(node)} is not one of {', '.join(choices)}"
            f"{_near(written, choices)}"
        )
    section = section_at(location)
    if section is not None and section.shorthand and isinstance(node, ScalarNode):
        return f"{name}: {in_quotes(node)}"
    if kind in {"model_type", "dict_type"}:
        return f"{name}: {_what_stands(node)} stands where a section belongs{_keys(location)}"
    if kind == "list_type":
        return (
            f"{name}: {_what_stands(node)} stands where a list belongs; write [A, B], or one item "
            "per line that starts with `- `"
        )
    if written is None and kind.endswith(("_type", "_parsing")):
        return f"{name}: {_what_stands(node)} stands where a single value belongs"
    found = "" if written is None else f" (found: `{written}`)"
    return f"{name}: {message[0].lower()}{message[1:]}{found}"


def _unknown_key(location: Location) -> str:
    if not str(location[-1]):
        place = f"{name_of(location[:-1])}: " if location[:-1] else ""
        return f"{place}there is no key before the colon; write `key: value`"
    section = section_at(location[:-1])
    keys = list(section.model_fields) if section is not None else []
    hint = _near(str(location[-1]), keys) or (f"; there is {', '.join(keys)}" if keys else "")
    return f"unknown key `{name_of(location)}`{hint}"


def _near(value: str | None, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


def _what_stands(node: object) -> str:
    if isinstance(node, ScalarNode):
        return f"`{node.value}`"
    kinds: dict[type, str] = {MappingNode: "a section", SequenceNode: "a list"}
    return kinds.get(type(node), "something else")


def _keys(location: Location) -> str:
    section = section_at(location)
    return f"; its keys are {', '.join(section.model_fields)}" if section is not None else ""


def _existing(data: Any, location: Location) -> Location:
    """The part of a location that the data has."""
    for depth, step in enumerate(location):
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return location[:depth]
    return location
