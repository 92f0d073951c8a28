"""Reading a job file: YAML in, `JobConfig` out, every problem at once with its line.

Relative paths, in the file as in `--set`, start from the current folder.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from multistill.config import JobConfig, Section
from multistill.errors import JobFileError, MultistillError, UsageError

Location = tuple[str | int, ...]
Problem = tuple[int | None, str]


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a file, with `key.path=value` overrides applied and paths made absolute.

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
    return parse(text, str(path), overrides)


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> JobConfig:
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
        problems += [(_line(node, at), sentence) for at, sentence in check(job)]
        if not problems:
            return absolute(job)
    problems.sort(key=lambda problem: problem[0] or 0)
    raise JobFileError(source, problems)


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """What only the rooms know: model presets, their overrides and the search space."""
    from multistill.models.presets import resolve
    from multistill.search.space import check_space

    models = [(("teacher", "model"), job.teacher.model)]
    models += [
        (("students", index, "model"), student.model)  # type: ignore[misc]
        for index, student in enumerate(job.students)
    ]
    for at, model in models:
        try:
            resolve(model.preset, model.overrides())
        except MultistillError as error:
            yield at, f"{'.'.join(map(str, at))}: {error}"
    for sentence in check_space(job.search.space, job.searched_student()):
        yield ("search", "space"), f"search.space: {sentence}"
    yield from _layers(job)
    yield from _losses(job)
    if job.search.enabled and job.search.metric == "loss":
        for key in ("train.loss", "train.label_source"):
            if key in job.search.space:
                yield (
                    ("search", "metric"),
                    f"search.metric: trials with another `{key}` measure another loss, so `loss` "
                    "cannot compare them; choose another metric or take it out of search.space",
                )
    if job.search.epochs is not None and job.search.grace_epochs > job.search.epochs:
        yield (
            ("search", "grace_epochs"),
            f"search.grace_epochs ({job.search.grace_epochs}) is above search.epochs "
            f"({job.search.epochs}); no trial would ever be stopped early",
        )


def _layers(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Encoder layers that a model is to read and the features do not hold apart."""
    kept = job.features.side_by_side()
    asked: list[tuple[Location, str, object]] = []
    for name in ("speech_layer", "text_layer"):
        asked.append((("teacher", "model"), name, getattr(job.teacher.model, name)))
        for index, student in enumerate(job.students):
            asked.append((("students", index, "model"), name, getattr(student.model, name)))
        searched = job.search.space.get(f"model.{name}") if job.search.enabled else None
        if searched and searched.choices is None:
            yield ("search", "space"), f"search.space: `model.{name}` needs `choices`"
        choices = (searched.choices if searched else None) or []
        asked += [(("search", "space", f"model.{name}"), name, choice) for choice in choices]
    for at, name, layer in asked:
        encoder, layers = name.removesuffix("_layer"), kept.get(f"{name}s", [])
        if layer is not None and layer not in layers:
            there = f"holds {', '.join(map(str, layers))}" if layers else "holds one state"
            yield (
                at,
                f"{name}: layer {layer} cannot be read, the store {there}; set features.{encoder}: "
                f"{{layers: [..., {layer}], combine: concat}}",
            )


def _losses(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Distillation losses that do not go with how students are trained."""
    space = job.search.space if job.search.enabled else {}
    searched = space.get("distillation.loss")
    asked = {job.distillation.loss, *((searched.choices or []) if searched else [])}
    over_batch = ["loss dist"] if "dist" in asked else []
    if job.distillation.cka_weight or "distillation.cka_weight" in space:
        over_batch.append("cka_weight")
    cut = space.get("train.accumulation")
    for option in over_batch if job.search.enabled else []:
        if job.search.workers_per_trial > 1:
            yield (
                ("search", "workers_per_trial"),
                f"search.workers_per_trial: distillation.{option} correlates over the batch that "
                "one worker sees; it needs trials of one worker",
            )
        if cut is not None and cut.choices != [1]:
            yield (
                ("search", "space", "train.accumulation"),
                f"search.space: distillation.{option} correlates over the rows that are computed "
                "together, which `train.accumulation` cuts; take it out of the space",
            )
    for index, student in enumerate(job.students):
        at, name = ("students", index, "train"), f"student `{student.name}`"
        if "two-mse" in asked and student.train.loss != "mse":
            yield (
                at,
                f"{name}: distillation.loss two-mse fits shares, not logits, so the student and "
                "its control need `train.loss: mse`",
            )
        train = student.train
        if train.workers > 1 or train.batch_frames or train.accumulation > 1:
            for option in over_batch:
                yield (
                    at,
                    f"{name}: distillation.{option} correlates over the batch that one worker "
                    "sees; it needs `workers: 1`, `accumulation: 1` and no `batch_frames`",
                )


def dump(job: JobConfig) -> str:
    """The resolved job as YAML, defaults included."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def absolute(job: JobConfig) -> JobConfig:
    """The job with every local path absolute, so that it means the same in any process."""

    def path(value: str | None) -> str | None:
        if value is None or "://" in value:
            return value
        return str(Path(value).expanduser().absolute())

    def encoder(name: str) -> str:
        # A name such as `org/model` is a folder only if that folder is there.
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
    """A copy in which no two places are one: YAML aliases are, and `--set` means one place."""
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
    at: Any = data
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        where = ".".join(steps[: position + 1])
        if isinstance(at, list):
            index = _index(at, step, where)
            if last:
                at[index] = value
            else:
                at = at[index]
        elif isinstance(at, dict):
            if last:
                at[step] = value
            else:
                if at.get(step) is None:
                    at[step] = {}
                at = at[step]
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
    at: Location = tuple(error["loc"])
    kind, message = error["type"], error["msg"]
    name = ".".join(str(step) for step in at)
    line = _line(node, at)
    if kind == "extra_forbidden":
        parent = _section_at(at[:-1])
        sentence = f"unknown key `{name}`"
        if parent is not None:
            keys = list(parent.model_fields)
            near = difflib.get_close_matches(str(at[-1]), keys, n=1, cutoff=0.5)
            sentence += f"; did you mean `{near[0]}`?" if near else f"; there is {', '.join(keys)}"
        return line, sentence
    if kind == "missing":
        return line, f"`{name}` is missing"
    if kind == "value_error":
        cause = (error.get("ctx") or {}).get("error")
        sentence = str(cause) if cause is not None else message
        return line, f"{name}: {sentence}" if name else sentence
    given = _value_at(data, at)
    if kind == "literal_error":
        expected = (error.get("ctx") or {}).get("expected", "")
        choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return line, f"{name}: `{given}` is not one of {', '.join(choices)}{hint}"
    return line, f"{name}: {message[0].lower()}{message[1:]} (found: {given!r})"


def _value_at(data: Any, at: Location) -> Any:
    for step in at:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _section_at(at: Location) -> type[BaseModel] | None:
    """The model that describes the mapping at this place of the file."""
    current: Any = JobConfig
    for step in at:
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


def _line(node: Node, at: Location) -> int | None:
    """The line of the deepest part of the place that the file really has (1-based)."""
    line = node.start_mark.line + 1
    for step in at:
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
    """YAML keeps the last of two equal keys without a word; a job file must not."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, f"the key `{key.value}` stands twice"
                seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


def identity(job: JobConfig) -> Mapping[str, Any]:
    """What decides a job's results: not where it runs, is stored or recorded."""
    whole = job.identity()
    return {k: v for k, v in whole.items() if k not in {"workspace", "tracking", "resources"}}
