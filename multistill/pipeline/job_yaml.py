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

from multistill.config.base import Location

Problem = tuple[int | None, str]
"""A line (from 1) and a sentence."""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
LONGEST_NUMBER = 300  # characters
MOST_VALUES = 100_000
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
            str(key.value): self.construct_object(value, deep=deep)
            for key, value in node.value
            if isinstance(key, ScalarNode)  # others are told by `_odd_keys`
        }

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse tags: no setting needs one, and a set or bytes would pass for something else."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        allowed = {None, "!", _TEXT} if isinstance(event, yaml.ScalarEvent) else {None, "!"}
        if tag not in allowed:
            raise yaml.MarkedYAMLError(problem=f"tag {tag!r}", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_number(self, node: ScalarNode) -> int | float:
        """A number, if it is one and not so long that Python refuses to write it."""
        kind = node.tag.rpartition(":")[2]
        try:
            if len(node.value) <= LONGEST_NUMBER:
                return getattr(self, f"construct_yaml_{kind}")(node)
            problem = "number too long"
        except ValueError:  # `0x_`
            problem = f"no number {node.value!r}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: Date(str(node.value)))


@dataclass(frozen=True)
class Document:
    """Parsed YAML: a job file, or the value of one `--set`.

    Attributes:
        data: the values, without shared objects; keys are strings as written.
        node: the root of the same values with their lines and the text as written.
        problems: duplicate keys, and keys that YAML takes for something else than text, each with
            its location; `()` if it has none.
        root: where in the job the data stands.
    """

    data: Any
    node: Node | None
    problems: tuple[tuple[Location, Problem], ...] = ()
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
        if _size(node, {}) > MOST_VALUES:
            raise NotValidYamlError(
                None,
                f"it stands for more than {MOST_VALUES} values, those of aliases (`*name`) counted "
                "wherever they stand; shorten it",
            )
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
        pairs = ((key, value) for key, value in node.value if isinstance(key, ScalarNode))
        yield from (((*location, str(key.value)), value) for key, value in pairs)
    elif isinstance(node, SequenceNode):
        yield from (((*location, index), item) for index, item in enumerate(node.value))


def _scalars(node: Node, location: Location) -> Iterator[tuple[Location, ScalarNode]]:
    if isinstance(node, ScalarNode):
        yield location, node
    for place, child in _children(node, location):
        yield from _scalars(child, place)


def _size(node: Node, known: dict[int, int]) -> int:
    """How many nodes a node stands for, with those of aliases at each place."""
    if id(node) not in known:
        parts = node.value if isinstance(node, MappingNode | SequenceNode) else ()
        items = (part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_size(inner, known) for item in items for inner in item)
    return known[id(node)]


def _repeated_keys(node: Node) -> Iterator[tuple[Location, Problem]]:
    """Duplicate keys, of which YAML silently keeps the last."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    yield (), (key.start_mark.line + 1, f"duplicate key `{key.value}`")
                seen.add(key.value)
    for _, child in _children(node, ()):
        yield from _repeated_keys(child)


def _odd_keys(node: Node, location: Location) -> Iterator[tuple[Location, Problem]]:
    """Keys that are not text."""
    if isinstance(node, MappingNode):
        section = f"{name_of(location)}: " if location else ""
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                yield (), (line, f"{section}a key must be text, not a list or a section")
            elif key.tag not in {_TEXT, _MERGE}:
                sentence = in_quotes(key, "the key ")
                yield (*location, str(key.value)), (line, f"{section}{sentence}")
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
        r"constructor for the tag '!!merge'|expected a mapping .*for merging",
        "`<<` merges a section, or a list of sections, written as `<<: *name`; put other text in "
        "quotes",
    ),
    (
        r"^number too long$",
        f"the number in this line is longer than the limit of {LONGEST_NUMBER} characters; write a "
        "shorter one, or put text in quotes",
    ),
    (r"^no number '(.*)'$", "`{0}` is not a number; put it in quotes"),
    (
        r"tag '(.*)'",
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
    problem = (error.problem or str(error)).replace("tag:yaml.org,2002:", "!!")
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
    if r"found character '\t'" in problem:  # PyYAML writes the two characters
        return number + 1, (
            "there is a tab in this line, which YAML does not allow outside quotes; write a space "
            "in its place"
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
