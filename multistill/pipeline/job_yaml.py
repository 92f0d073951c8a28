"""YAML of a job file: values, their lines, and in words what YAML refuses or misreads.

YAML 1.1 reads `01` and `10:30` as numbers, `no` and `on` as booleans, `2024-01-01` as a date. Where
a name is meant, as in every key, that is told with the text as written and quotes around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from multistill.pipeline.recipes import Location

Problem = tuple[int | None, str]
"""A line (from 1) and a sentence."""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class NotValidYamlError(Exception):
    """YAML that cannot be read: a line (from 1) if known, and a sentence."""

    def __init__(self, line: int | None, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line
        self.sentence = sentence


@dataclass(frozen=True)
class Date:
    """A date of YAML 1.1. No setting is one, so it is kept as written."""

    text: str


class _Loader(yaml.SafeLoader):
    """Safe YAML whose keys are text as written, so that `01`, `no` and `1.0` stay distinct."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {
            str(key.value): self.construct_object(value, deep=deep) for key, value in node.value
        }


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: Date(str(node.value)))


@dataclass(frozen=True)
class Document:
    """Parsed YAML: a job file, or the value of one `--set`.

    Attributes:
        data: the values, without shared objects; keys are strings as written.
        node: the root of the same values with their lines and the text as written.
        problems: duplicate keys, and keys that YAML takes for something else than text.
        root: where in the job the data stands.
    """

    data: Any
    node: Node | None
    problems: tuple[Problem, ...] = ()
    root: Location = ()

    def line(self, location: Location) -> int | None:
        """Line (from 1) of the deepest part of the location that the document contains."""
        node = self.node
        line = node.start_mark.line + 1 if node is not None else None
        for step in location[len(self.root) :]:
            start, node = _child(node, step)
            if start is None:
                break
            line = start.start_mark.line + 1
        return line

    def at(self, location: Location) -> Node | None:
        """The node of a location, None if the document has none there."""
        node = self.node
        for step in location[len(self.root) :]:
            _, node = _child(node, step)
        return node

    def scalars(self) -> Iterator[tuple[Location, ScalarNode]]:
        """Every single value, keys excluded."""
        if self.node is not None:
            yield from _scalars(self.node, self.root)


def read(text: str, root: Location = ()) -> Document:
    """Parse YAML without running any code.

    Raises:
        NotValidYamlError: it is not valid YAML; says in words where and why.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, None, root=root)
        problems = (*_repeated_keys(node), *_odd_keys(node, root))
        data = _unshared(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        raise NotValidYamlError(*_in_words(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        sentence = f"the character {character} is not allowed in YAML; delete it"
        raise NotValidYamlError(line, sentence) from error
    except RecursionError as error:
        sentence = "an alias stands inside the section that it refers to, or sections are nested "
        raise NotValidYamlError(None, sentence + "too deeply") from error
    except ValueError as error:  # a number that is too long
        raise NotValidYamlError(None, str(error)) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(data, node, problems, root)


def read_as(node: ScalarNode) -> str | None:
    """What YAML takes a value for, in words; None if it takes it for text."""
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return "no value"
    if kind == "timestamp":
        return "a date"
    if kind in {"bool", "int", "float"}:
        loader = _Loader("")
        value = loader.construct_object(node)
        loader.dispose()
        return str(value).lower() if kind == "bool" else f"the number {value}"
    return None


def quoted(text: str) -> str:
    """The text in YAML's single quotes."""
    return "'" + text.replace("'", "''") + "'"


def _child(node: Node | None, step: str | int) -> tuple[Node | None, Node | None]:
    """Where a part of a node starts, and the part; `(None, None)` if there is none."""
    if isinstance(node, MappingNode):
        pair = next((pair for pair in node.value if pair[0].value == str(step)), None)
        return pair if pair is not None else (None, None)
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None, None


def _children(node: Node, location: Location) -> Iterator[tuple[Location, Node]]:
    if isinstance(node, MappingNode):
        yield from (((*location, str(key.value)), value) for key, value in node.value)
    elif isinstance(node, SequenceNode):
        yield from (((*location, index), item) for index, item in enumerate(node.value))


def _scalars(node: Node, location: Location) -> Iterator[tuple[Location, ScalarNode]]:
    if isinstance(node, ScalarNode):
        yield location, node
    for place, child in _children(node, location):
        yield from _scalars(child, place)


def _repeated_keys(node: Node) -> Iterator[Problem]:
    """Duplicate keys, of which YAML silently keeps the last."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    yield key.start_mark.line + 1, f"duplicate key `{key.value}`"
                seen.add(key.value)
    for _, child in _children(node, ()):
        yield from _repeated_keys(child)


def _odd_keys(node: Node, location: Location) -> Iterator[Problem]:
    """Keys that are not text."""
    if isinstance(node, MappingNode):
        section = f"{name_of(location)}: " if location else ""
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                yield line, f"{section}a key must be text, not a list or a section"
            elif key.tag not in {_TEXT, _MERGE}:
                yield line, f"{section}{in_quotes(key, 'the key ')}"
    for place, child in _children(node, location):
        yield from _odd_keys(child, place)


def looks_like_another_number(node: ScalarNode) -> bool:
    """Whether a number is octal (`010` is 8) or sexagesimal (`1:30` is 90)."""
    kind = node.tag.rpartition(":")[2]
    sexagesimal = kind in {"int", "float"} and ":" in node.value
    return sexagesimal or (kind == "int" and _OCTAL.fullmatch(node.value) is not None)


def in_quotes(node: ScalarNode, what: str = "") -> str:
    """The advice for a value that YAML takes for something else than text."""
    meaning = read_as(node) or "something else than text"
    return f"YAML reads {what}`{node.value}` as {meaning}; put it in quotes: {quoted(node.value)}"


def name_of(location: Location) -> str:
    """A location as users write it: `students.0.model`."""
    return ".".join(str(step) for step in location)


def _unshared(value: Any) -> Any:
    """A copy without shared objects: YAML aliases share them, while `--set` changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


_SENTENCES = (
    # What PyYAML says -> what is wrong and what to do; {0} is the first group of the pattern.
    (
        r"expected <block end>, but found '(?:<block .* start>|-|\?)'",
        "this line is indented like none of the lines above it; start the keys of one section, "
        "and the items of one list, in the same column",
    ),
    (
        r"expected '<document start>', but found '<block .* start>'",
        "this line starts further left than the first key; start all sections in the same column",
    ),
    (
        r"expected <block end>, but found|expected '<document start>'",
        "there is text after a closing quote or bracket; put the whole text in quotes",
    ),
    (
        r"found character '(.)' that cannot start any token",
        "text that starts with `{0}` must be in quotes",
    ),
    (
        r"expected alphabetic or numeric character, but found",
        "text that starts with `*` or `&` must be in quotes",
    ),
    (
        r"found unknown escape character '(.)'",
        "in double quotes, `\\{0}` would be an escape; use single quotes, as for Windows paths",
    ),
    (
        r"could not determine a constructor for the tag '(.*)'",
        "the tag `{0}` is not allowed in a job file; remove it, or put text that starts with `!` "
        "or `=` in quotes",
    ),
    (r"found undefined alias '(.*)'", "there is no anchor `&{0}` for `*{0}`"),
    (
        r"but found another document",
        "a second document starts here (`---`); keep one job per file",
    ),
)


def _in_words(error: yaml.MarkedYAMLError, text: str) -> tuple[int | None, str]:
    """The line and the remedy of a syntax error."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or str(error)
    if mark is None:
        return None, problem
    lines = [*text.splitlines(), ""]
    number = min(mark.line, len(lines) - 1)
    opened = error.context_mark.line + 1 if error.context_mark is not None else number + 1
    if "\t" in _indentation(lines[number]):
        return number + 1, (
            "this line is indented with a tab, which YAML does not allow; indent with spaces, "
            "two per level"
        )
    if "mapping values are not allowed" in problem:
        return _second_colon(lines, number)
    if "could not find expected ':'" in problem:
        return opened, "this line has no `: ` after its key; write `key: value`"
    if re.search(r"expected ',' or '[\]}]'", problem):
        bracket = "[" if "']'" in problem else "{"
        return opened, (
            f"the `{bracket}` that opens in this line is not closed, or a comma or the space after "
            "a colon is missing inside it"
        )
    if "scanning a quoted scalar" in (error.context or "") and "unexpected" in problem:
        return opened, "the quote that opens in this line is never closed"
    for pattern, sentence in _SENTENCES:
        match = re.search(pattern, problem)
        if match:
            return number + 1, sentence.format(*match.groups())
    return number + 1, problem


def _second_colon(lines: list[str], number: int) -> tuple[int, str]:
    """What is wrong where a key is found inside a value, at a line (from 0)."""
    line = lines[number]
    before = next((n for n in range(number - 1, -1, -1) if lines[n].strip()), None)
    if line.count(": ") + line.rstrip().endswith(":") > 1:
        return number + 1, (
            "text that contains `: ` must be in quotes, and a section in one line in braces: "
            "`{key: value}`"
        )
    if before is not None and re.match(r"\s*(?:- )*[\w.-]+:[^\s:]", lines[before]):
        return before + 1, "there is no space after the colon; write `key: value`"
    if before is not None and len(_indentation(line)) > len(_indentation(lines[before])):
        return number + 1, (
            "this line is indented further than the line above, which has a value already; "
            "start both in the same column"
        )
    if before is not None and ":" not in lines[before]:
        return before + 1, "this line has no `: ` after its key; write `key: value`"
    return number + 1, (
        "a key stands where a value is expected; check the quotes and the indentation of this "
        "line and of the line above"
    )


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
