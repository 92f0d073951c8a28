"""Reads a job file: YAML in, `JobConfig` out, every problem at once with its line.

Relative paths, in the file as in `--set`, start from the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from pydantic import ValidationError

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.encoders.hub import is_folder
from multistill.encoders.preflight import problems as encoder_problems
from multistill.encoders.training_data import overlaps
from multistill.errors import JobFileError, UsageError
from multistill.models.presets import resolve
from multistill.pipeline import job_yaml
from multistill.pipeline.job_problems import describe, misread
from multistill.pipeline.job_values import JobValues
from multistill.pipeline.recipes import get_recipe, steps_of
from multistill.workspace import Workspace


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
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise JobFileError(str(path), [(line, "not UTF-8 text; save the file as UTF-8")]) from error
    except OSError as error:
        raise UsageError(f"the job file `{path}` cannot be read: {error}") from error
    return parse(text, str(path), overrides, for_cluster=for_cluster)


def parse(
    text: str, source: str, overrides: Sequence[str] = (), *, for_cluster: bool = False
) -> JobConfig:
    """Like `load`, for the file's text."""
    try:
        document = job_yaml.read(text)
    except job_yaml.NotValidYamlError as error:
        problem = (error.line, f"not valid YAML: {error.sentence}")
        raise JobFileError(source, [problem]) from error
    if not isinstance(document.data, dict):
        raise JobFileError(
            source, [(1, "a job file is a mapping with at least `name` and `corpora`")]
        )
    values = JobValues(document)
    for override in overrides:
        values.override(override)
    numbers = misread(values)
    problems = [*values.odd_keys(), *(values.problem(*item) for item in numbers.items())]
    try:
        job = JobConfig.model_validate(values.data)
    except ValidationError as error:
        problems += describe(error, values, numbers.keys())
    else:
        found = (*_unknown_homes(job), *_check(job))
        problems += [values.problem(location, sentence) for location, sentence in found]
        if for_cluster and not Path(job.workspace).is_absolute():
            problems.append(
                values.problem(
                    ("workspace",),
                    f"the workspace `{job.workspace}` is a relative path, which other machines "
                    "cannot resolve; give a folder that all nodes of the cluster see, e.g. "
                    "--workspace /shared/FOLDER",
                )
            )
        if not problems:
            return absolute(job)
    problems = sorted(dict.fromkeys(problems), key=lambda problem: problem[0] or 0)
    raise JobFileError(source, problems)


def _unknown_homes(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Paths that start with the home folder of a user whom this machine does not know."""
    paths: list[tuple[Location, str | None]] = [(("workspace",), job.workspace)]
    for index, corpus in enumerate(job.corpora):
        paths += [(("corpora", index, "path"), corpus.path)]
        paths += [(("corpora", index, "audio_root"), corpus.audio_root)]
    for name in ("rooms", "noise_folder"):
        folder = getattr(job.features.augmentation, name)
        paths += [(("features", "augmentation", name), folder)]
    for location, path in paths:
        if path and path[0] == "~" and os.path.expanduser(path) == path:  # noqa: PTH111
            yield (
                location,
                f"{job_yaml.name_of(location)}: there is no home folder for the `~` of `{path}` "
                "on this machine; write the whole path",
            )


def _check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Problems of a job whose sections are valid on their own."""
    try:
        recipe = get_recipe(job.recipe)
    except UsageError as error:
        yield ("recipe",), str(error)
        return
    used = {"name", "recipe", "seed", "workspace", "tracking", "notify", "resources"}
    used = used.union(*(step.sections for step in steps_of(job, Workspace("."))))
    for section, field in type(job).model_fields.items():
        # A section that is switched off is valid in any recipe: `search: {enabled: false}`; so is
        # one that says what holds without it, as a recorded job does.
        value = getattr(job, section)
        said = getattr(value, "enabled", True) and section in job.model_fields_set - used
        if said and value != field.get_default(call_default_factory=True):
            yield (
                (section,),
                f"no stage of the recipe `{recipe.name}` reads `{section}`; remove the section, or "
                "choose another `recipe`",
            )
    yield from job.label_problems()
    yield from recipe.check(job)
    if "features" in used:
        found = list(encoder_problems(job.features))
        for encoder, sentence in found:
            yield ("features", encoder, "model"), sentence
        if not found and "search" in used:
            yield from _searched_tops(job)


def _searched_tops(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """More layers to train in a trial than the encoder has, or than the store leaves to it."""
    for encoder in ("speech", "text"):
        key = f"features.{encoder}.train.top"
        searched, section = job.search.space.get(key), getattr(job.features, encoder)
        if searched is None or not section.train.enabled:
            continue
        values = [searched.high] if searched.choices is None else searched.choices
        highest = max((int(v) for v in values if isinstance(v, int | float)), default=0)
        train = section.train.model_dump() | {"top": highest}
        try:
            largest = section.model_copy(update={"train": type(section.train)(**train)})
        except ValidationError:  # told by the recipe's check of the search
            continue
        features = job.features.model_copy(update={encoder: largest})
        for _, sentence in encoder_problems(features):
            yield ("search", "space", key), f"search.space: `{key}`: {sentence}"


def notes(job: JobConfig) -> list[str]:
    """What a valid job file costs and does not show, a sentence each."""
    used = {section for step in steps_of(job, Workspace(".")) for section in step.sections}
    known = overlaps(job.features, job.corpora) if "features" in used else []
    return [*known, *_unscaled(job, used), *_without_effect(job, used)]


def _unscaled(job: JobConfig, used: Set[str]) -> Iterator[str]:
    """Heads that read encoder states without scaling them."""
    models = list(job.teacher.members.items()) if "teacher" in used else []
    if "students" in used:
        models += [(f"student {student.name}", student.model) for student in job.students]
    if "continual" in used:
        models.append(("continual", job.continual.model))
    unscaled = [
        name
        for name, model in models
        if resolve(model.preset, model.overrides()).standardize == "none"
    ]
    searched = job.search.space.get("model.standardize") if "search" in used else None
    if searched is not None and "none" in (searched.choices or ()):
        unscaled.append("search.space, model.standardize")
    if unscaled:
        yield (
            f"{', '.join(unscaled)}: `standardize: none` (as published) hands encoder states to "
            "the head as they are, which costs accuracy where they are far from standardised "
            "(docs/models.md, Standardised states); `model: {standardize: encoder}` scales them "
            "by the training part"
        )


def _without_effect(job: JobConfig, used: Set[str]) -> Iterator[str]:
    """Searched settings of the teacher's loss of classes, in a job that has none."""
    if job.tasks.classes is not None or "search" not in used:
        return
    of_classes = ("loss", "temperature", "standardize", "dkd_alpha", "dkd_beta")
    searched = [name for each in of_classes if (name := f"distillation.{each}") in job.search.space]
    if searched:
        yield (
            f"search.space, {', '.join(searched)}: no effect, because it is of the teacher's "
            "loss of classes and `tasks` has none: trials that differ in it alone are the same "
            "training twice"
        )


def absolute(job: JobConfig) -> JobConfig:
    """Make every local path absolute, so that it means the same in any process."""

    def path(value: str | None) -> str | None:
        if value is None or "://" in value:
            return value
        return str(Path(value).expanduser().absolute())

    def encoder(name: str) -> str:
        # A name such as `org/model` is a folder only if that folder exists.
        return str(Path(name).absolute()) if is_folder(name) and name[:1] != "~" else name

    speech, text = job.features.speech, job.features.text
    copies = job.features.augmentation
    folders = {"rooms": path(copies.rooms), "noise_folder": path(copies.noise_folder)}
    features = job.features.model_copy(
        update={
            "speech": speech.model_copy(
                update={
                    "model": encoder(speech.model),
                    "additional": [
                        part.model_copy(update={"model": encoder(part.model)})
                        for part in speech.additional
                    ],
                }
            ),
            "text": text.model_copy(update={"model": encoder(text.model)}),
            "augmentation": copies.model_copy(update=folders),
        }
    )
    corpora = [
        corpus.model_copy(update={"path": path(corpus.path), "audio_root": path(corpus.audio_root)})
        for corpus in job.corpora
    ]
    return job.model_copy(
        update={"workspace": path(job.workspace), "corpora": corpora, "features": features}
    )
