"""The values of a job: those of its file, with those of `--set` on top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yaml.nodes import Node, ScalarNode

from multistill.config.base import Location
from multistill.config.secrets import HIDDEN, has_secret
from multistill.errors import UsageError
from multistill.pipeline.job_schema import section_at
from multistill.pipeline.job_yaml import Document, NotValidYamlError, Problem, name_of, quoted, read
from multistill.tracking.redaction import redact


class JobValues:
    """What a job's file and its `--set` options say, each value with its source.

    Attributes:
        data: nested mappings and lists of plain values.
    """

    def __init__(self, document: Document) -> None:
        self.data: Any = document.data
        self._document = document
        self._overrides: list[tuple[str, Document]] = []

    def override(self, text: str) -> None:
        """Set one `a.b.0.c=value`; a list item may also be named by its `name`.

        Raises:
            UsageError: it cannot be read, or there is no such place.
        """
        key, equals, value = text.partition("=")
        # Only messages use the text from here on.
        text = f"{key}={HIDDEN}" if has_secret(value) else redact(text)
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise UsageError(f"--set {text}: write it as section.key=value")
        location, target = self._place(text, steps)
        try:
            document = read(value, location)
        except NotValidYamlError as error:
            raise UsageError(f"--set {text}: not valid YAML: {redact(error.sentence)}") from error
        target[location[-1]] = document.data
        self._overrides.append((text, document))

    def _place(self, text: str, steps: list[str]) -> tuple[Location, Any]:
        """Where an override goes: its location, and the mapping or list that holds it."""
        location: Location = ()
        target = self.data
        for step in steps:
            if location:
                target = self._opened(target, location, text)
            key = _index(target, step, text) if isinstance(target, list) else step
            location = (*location, key)
        return location, target

    def _opened(self, holder: Any, location: Location, text: str) -> Any:
        """The mapping or list at a location, made if it is absent or written as its shorthand."""
        key = location[-1]
        value = holder.get(key) if isinstance(holder, dict) else holder[key]
        if value is None:
            value = holder[key] = {}
        elif isinstance(value, str | bool):
            section = section_at(location)
            if section is not None and isinstance(value, bool) and section.switch:
                value = holder[key] = {section.switch: value}
            elif section is not None and section.shorthand:
                value = holder[key] = dict.fromkeys(section.shorthand, value)
        if not isinstance(value, dict | list):
            raise UsageError(f"--set {text}: `{name_of(location)}` is a plain value, not a section")
        return value

    def _source(self, location: Location) -> tuple[str | None, Document]:
        """The `--set` that gave a value, or None, and the document it stands in."""
        for text, document in reversed(self._overrides):
            if location[: len(document.root)] == document.root:
                return text, document
        return None, self._document

    def problem(self, location: Location, sentence: str) -> Problem:
        """A sentence about a value, with its line or the `--set` that it comes from."""
        override, document = self._source(location)
        if override is None:
            return document.line(location), sentence
        return _of_override(override, document, sentence)

    def node(self, location: Location) -> Node | None:
        """The value as it is written; None where nothing is written."""
        return self._source(location)[1].at(location)

    def scalars(self) -> Iterator[tuple[Location, ScalarNode]]:
        """Every single value that counts, keys excluded."""
        documents = [self._document, *(document for _, document in self._overrides)]
        for document in documents:
            for location, node in document.scalars():
                if self._source(location)[1] is document:
                    yield location, node

    def odd_keys(self) -> Iterator[Problem]:
        """Duplicate keys, and keys that YAML takes for something else than text.

        Without those that are unknown in any case, which quotes would not make right.
        """
        yield from (problem for place, problem in self._document.problems if not _is_unknown(place))
        for override, document in self._overrides:
            for place, (_, sentence) in document.problems:
                if not _is_unknown(place):
                    yield _of_override(override, document, sentence)


def _is_unknown(location: Location) -> bool:
    section = section_at(location[:-1]) if location else None
    return section is not None and location[-1] not in section.model_fields


def _of_override(override: str, document: Document, sentence: str) -> Problem:
    if isinstance(document.node, ScalarNode) and "in quotes" in sentence:
        key = override.partition("=")[0]
        # A shell would take single quotes away.
        sentence += f'; from a shell: --set "{key}={quoted(document.node.value)}"'
    return None, f"--set {override}: {sentence}"


def _index(items: list[Any], step: str, text: str) -> int:
    for index, item in enumerate(items):
        if item == step or (isinstance(item, dict) and item.get("name") == step):
            return index
    if step.isdigit() and int(step) < len(items):
        return int(step)
    raise UsageError(f"--set {text}: there is no item `{step}` in the list of {len(items)}")
