"""Reads a job file: YAML in, `JobConfig` out, every problem at once with its line.

Relative paths, in the file as in `--set`, start from the current folder.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from multistill.config import JobConfig, Section
from multistill.encoders.preflight import problems as encoder_problems
from multistill.errors import JobFileError, UsageError
from multistill.pipeline.recipes import Location, get_recipe, steps_of
from multistill.workspace import Workspace

Problem = tuple[int | None, str]


def load(path: Path, overrides: Sequence[str] = (), *, for_cluster: bool = False) -> JobConfig:
    """Load a job file, apply `key.path=value` overrides and make paths absolute.

    Args:
        for_cluster: refuse a relative workspace, which other machines cannot resolve.

    Raises:
        UsageError: no such file, or an override that cannot be read.
        JobFileError: everything that is wrong with the file, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no job file `{path}`; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the job file `{path}` cannot be read: {error}") from error
    return parse(text, str(path), overrides, for_cluster=for_cluster)


def parse(
    text: str, source: str, overrides: Sequence[str] = (), *, for_cluster: bool = False
) -> JobConfig:
    """Like `load`, for the file's text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        reason = getattr(error, "problem", None) or str(error)
        raise JobFileError(source, [(line, f"not valid YAML: {reason}")]) from error
    if not isinstance(data, dict) or node is None:
        raise JobFileError(
            source, [(1, "a job file is a mapping with at least `name` and `corpora`")]
        )
    problems = list(_repeated_keys(node))
    data = _unshared(data)
    for override in overrides:
        _apply(data, override)
    try:
        job = JobConfig.model_validate(data)
    except ValidationError as error:
        problems += [_describe(item, data, node) for item in error.errors()]
    else:
        problems += [(_line(node, location), text) for location, text in _check(job)]
        if for_cluster and not Path(job.workspace).is_absolute():
            problems.append(
                (
                    _line(node, ("workspace",)),
                    f"the workspace `{job.workspace}` is a relative path, which other machines "
                    "cannot resolve; give a folder that all nodes of the cluster see, e.g. "
                    "--workspace /shared/FOLDER",
                )
            )
        if not problems:
            return absolute(job)
    problems.sort(key=lambda problem: problem[0] or 0)
    raise JobFileError(source, problems)


def _check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Problems of a job whose sections are valid on their own."""
    try:
        recipe = get_recipe(job.recipe)
    except UsageError as error:
        yield ("recipe",), str(error)
        return
    used = {"name", "recipe", "seed", "workspace", "tracking", "resources"}
    used = used.union(*(step.sections for step in steps_of(job, Workspace("."))))
    for section in type(job).model_fields:
        # A section that is switched off is valid in any recipe: `search: {enabled: false}`.
        enabled = getattr(getattr(job, section), "enabled", True)
        if enabled and section in job.model_fields_set - used:
            yield (
                (section,),
                f"no stage of the recipe `{recipe.name}` reads `{section}`; remove the section, or "
                "choose another `recipe`",
            )
    yield from recipe.check(job)
    if "features" in used:
        for encoder, sentence in encoder_problems(job.features):
            yield ("features", encoder, "model"), sentence


def absolute(job: JobConfig) -> JobConfig:
    """Make every local path absolute, so that it means the same in any process."""

    def path(value: str | None) -> str | None:
        if value is None or "://" in value:
            return value
        return str(Path(value).expanduser().absolute())

    def encoder(name: str) -> str:
        # A name such as `org/model` is a folder only if that folder exists.
        return str(Path(name).absolute()) if Path(name).is_dir() else name

    speech, text = job.features.speech, job.features.text
    features = job.features.model_copy(
        update={
            "speech": speech.model_copy(update={"model": encoder(speech.model)}),
            "text": text.model_copy(update={"model": encoder(text.model)}),
        }
    )
    corpora = [
        corpus.model_copy(update={"path": path(corpus.path), "audio_root": path(corpus.audio_root)})
        for corpus in job.corpora
    ]
    return job.model_copy(
        update={"workspace": path(job.workspace), "corpora": corpora, "features": features}
    )


def _unshared(value: Any) -> Any:
    """A copy without shared objects: YAML aliases share them, while `--set` changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `a.b.0.c=value`; a list item may also be named by its `name`."""
    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise UsageError(f"--set {override}: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not valid YAML") from error
    target: Any = data
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        where = ".".join(steps[: position + 1])
        if isinstance(target, list):
            index = _index(target, step, where)
            if last:
                target[index] = value
            else:
                target = target[index]
        elif isinstance(target, dict):
            if last:
                target[step] = value
            else:
                if target.get(step) is None:
                    target[step] = {}
                target = target[step]
        else:
            raise UsageError(f"--set {override}: `{where}` is inside a plain value")


def _index(items: list[Any], step: str, where: str) -> int:
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == step:
            return index
    if step.isdigit() and int(step) < len(items):
        return int(step)
    raise UsageError(f"--set: there is no `{where}`; the list has {len(items)} items (0 to N-1)")


def _describe(error: Any, data: Any, node: Node) -> Problem:
    location: Location = tuple(error["loc"])
    kind, message = error["type"], error["msg"]
    name = ".".join(str(step) for step in location)
    line = _line(node, location)
    if kind == "extra_forbidden":
        parent = _section_at(location[:-1])
        sentence = f"unknown key `{name}`"
        if parent is not None:
            keys = list(parent.model_fields)
            near = difflib.get_close_matches(str(location[-1]), keys, n=1, cutoff=0.5)
            sentence += f"; did you mean `{near[0]}`?" if near else f"; there is {', '.join(keys)}"
        return line, sentence
    if kind == "missing":
        return line, f"`{name}` is missing"
    if kind == "value_error":
        cause = (error.get("ctx") or {}).get("error")
        sentence = str(cause) if cause is not None else message
        return line, f"{name}: {sentence}" if name else sentence
    value = _value_at(data, location)
    if kind == "literal_error":
        expected = (error.get("ctx") or {}).get("expected", "")
        choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return line, f"{name}: `{value}` is not one of {', '.join(choices)}{hint}"
    return line, f"{name}: {message[0].lower()}{message[1:]} (found: {value!r})"


def _value_at(data: Any, location: Location) -> Any:
    for step in location:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _section_at(location: Location) -> type[BaseModel] | None:
    """The section that describes the mapping at this location of the file."""
    current: Any = JobConfig
    for step in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
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
            current = next(a for a in typing.get_args(current) if a is not type(None))
    return current if isinstance(current, type) and issubclass(current, Section) else None


def _line(node: Node, location: Location) -> int | None:
    """Line (from 1) of the deepest part of the location that the file contains."""
    line = node.start_mark.line + 1
    for step in location:
        if isinstance(node, MappingNode):
            pair = next((p for p in node.value if p[0].value == str(step)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                return line
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _repeated_keys(node: Node) -> Iterator[Problem]:
    """Duplicate keys, of which YAML silently keeps the last."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, f"duplicate key `{key.value}`"
                seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)
