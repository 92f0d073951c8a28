"""The search space: dotted names of one student's settings, checked and applied.

`distillation.temperature`, `train.learning_rate`, `train.augmentation.mixup`: the part before the
last dot is a section of the job file, the part after it a field of that section. Types and limits
come from the sections, so a field added there can be searched without further code. Imports
neither ray, optuna nor torch, since the checks of the job file use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from multistill.config import (
    AugmentationConfig,
    DistillationConfig,
    ModelConfig,
    SearchParameter,
    Section,
    StudentConfig,
    TrainConfig,
    TrainSection,
)
from multistill.errors import UsageError
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from multistill.training.task import TrainingTask

Space = Mapping[str, SearchParameter]
Values = Mapping[str, Any]

SECTIONS: dict[str, type[Section]] = {
    "distillation": DistillationConfig,
    "train": TrainSection,
    "train.augmentation": AugmentationConfig,
    "model": ModelConfig,
}

NOT_SEARCHED = {
    "distillation.targets": "soft targets are computed once, before the search",
    "train.epochs": "the budget of a trial is `search.epochs`",
    "train.metric": "trials are compared by `search.metric`",
    "train.select_window": "trials are compared by the mean over equally many epochs",
    "train.augmentation.only": "choose the classes in `students`",
    "model.preset": "choose the preset in `students` and search its fields",
}

_COMBINATIONS = 4096
_REQUIRED: dict[str, dict[str, Any]] = {"model": {"preset": "small-student"}}


def known_keys() -> list[str]:
    """Every name that a space can contain, sorted."""
    return sorted(
        f"{section}.{name}"
        for section, model in SECTIONS.items()
        for name, field in model.model_fields.items()
        if f"{section}.{name}" not in {*NOT_SEARCHED, *SECTIONS}
        and not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra)
    )


def check_space(space: Space, student: StudentConfig | None = None) -> list[str]:
    """Return all problems of the space, one sentence each; empty if it is valid.

    Args:
        student: the searched student; with it, combinations of model settings that cannot
            be built (a width that the heads do not divide) are reported too.
    """
    problems = [problem for key in space for problem in _problems_of(key, space)]
    if not problems:
        try:
            _ordered(space)
        except CycleError as error:
            cycle = " -> ".join(f"`{key}`" for key in error.args[1])
            problems.append(f"the conditions form a cycle: {cycle}; remove one `when`")
    if not problems and student is not None:
        problems += _unbuildable(space, student)
    return problems


def suggest(space: Space, trial: BaseTrial) -> dict[str, Any]:
    """Suggest values with Optuna; conditional names only where their conditions hold."""
    values: dict[str, Any] = {}
    for key in _ordered(space):
        parameter = space[key]
        if not _applies(parameter, values):
            continue
        if parameter.choices is not None:
            values[key] = trial.suggest_categorical(key, parameter.choices)
            continue
        low, high = _bounds(parameter)
        if _type(key) is int:
            step = int(parameter.step or 1)
            values[key] = trial.suggest_int(key, int(low), int(high), step=step, log=parameter.log)
        else:
            values[key] = trial.suggest_float(
                key, low, high, step=parameter.step, log=parameter.log
            )
    return values


def current(task: TrainingTask, space: Space) -> dict[str, Any] | None:
    """The student's own settings as a point of the space; None if they lie outside it."""
    settings = _settings(task)
    values: dict[str, Any] = {}
    for key in _ordered(space):
        parameter = space[key]
        if not _applies(parameter, values):
            continue
        section, _, name = key.rpartition(".")
        value = settings[section].get(name)
        if value is None or not _contains(parameter, value):
            return None
        values[key] = value
    return values


def apply(task: TrainingTask, values: Values) -> TrainingTask:
    """Apply these settings to the task.

    Raises:
        UsageError: an unknown name, a value out of its range, settings that contradict each
            other, or a distillation setting for a task without a teacher.
    """
    settings = _settings(task)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if key not in known_keys():
            raise UsageError(f"search: {_unknown(key)}")
        if section == "distillation" and task.distillation is None:
            raise UsageError(f"search: `{key}` needs a student that is distilled from a teacher")
        problem = _invalid(key, value)
        if problem:
            raise UsageError(f"search: `{key}`: {problem}")
        settings[section][name] = value
    return replace(
        task,
        spec=ModelSpec.from_dict(settings["model"]),
        train=TrainConfig.model_validate(
            {**settings["train"], "augmentation": settings["train.augmentation"]}
        ),
        distillation=task.distillation
        and DistillationConfig.model_validate(settings["distillation"]),
    )


def _settings(task: TrainingTask) -> dict[str, dict[str, Any]]:
    """The task's settings by section of the space."""
    return {
        "distillation": task.distillation.model_dump() if task.distillation else {},
        "train": task.train.model_dump(),
        "train.augmentation": task.train.augmentation.model_dump(),
        "model": task.spec.to_dict(),
    }


def _problems_of(key: str, space: Space) -> list[str]:
    if key in NOT_SEARCHED:
        return [f"`{key}` cannot be searched: {NOT_SEARCHED[key]}"]
    if key not in known_keys():
        return [_unknown(key)]
    parameter = space[key]
    if parameter.choices is not None:
        problems = _choice_problems(key, parameter.choices)
    elif _type(key) not in (int, float):
        problems = [f"`{key}` is not a number: give it `choices`"]
    else:
        problems = _range_problems(key, parameter)
    for parent, allowed in parameter.when.items():
        problems += _condition_problems(key, parent, allowed, space)
    return problems


def _choice_problems(key: str, choices: list[Any]) -> list[str]:
    problems = []
    if len(set(map(repr, choices))) < len(choices):
        problems.append(f"`{key}` lists a choice twice")
    for choice in choices:
        problem = _invalid(key, choice)
        if problem:
            problems.append(f"`{key}`: {choice!r} is not possible: {problem}")
    return problems


def _range_problems(key: str, parameter: SearchParameter) -> list[str]:
    problems = []
    for bound in _bounds(parameter):
        value = int(bound) if _type(key) is int and bound == int(bound) else bound
        problem = _invalid(key, value)
        if problem:
            problems.append(f"`{key}`: {value!r} is not possible: {problem}")
    if _type(key) is int and parameter.step is not None and parameter.step % 1:
        problems.append(f"`{key}` is an integer: give it a whole `step`")
    return problems


def _condition_problems(key: str, parent: str, allowed: list[Any], space: Space) -> list[str]:
    if parent not in space:
        return [f"`{key}` depends on `{parent}`, which is not searched; add it or remove `when`"]
    choices = space[parent].choices
    if choices is None:
        return [f"`{key}` depends on `{parent}`, which has no `choices`; give it some"]
    return [
        f"`{key}` depends on `{parent}` being {value!r}, which is not among its choices"
        for value in allowed
        if value not in choices
    ]


def _unbuildable(space: Space, student: StudentConfig) -> list[str]:
    """Describe the first combination of searched model settings that cannot be built."""
    axes: dict[str, list[Any]] = {}
    for key in _ordered(space):
        if key.startswith("model.") or any(key in p.when for p in space.values()):
            parameter = space[key]
            axes[key] = parameter.choices or list(_bounds(parameter))
    if not axes:
        return []
    for point in itertools.islice(itertools.product(*axes.values()), _COMBINATIONS):
        values = dict(zip(axes, point, strict=True))
        fields = {}
        for key, value in values.items():
            if key.startswith("model.") and _applies(space[key], values):
                fields[key.removeprefix("model.")] = int(value) if _type(key) is int else value
        try:
            resolve(student.model.preset, {**student.model.overrides(), **fields})
        except UsageError as error:
            settings = ", ".join(f"{name} {value}" for name, value in fields.items())
            return [
                f"the space contains a model that cannot be built ({settings}): {error}; "
                "change the choices or separate them with `when`"
            ]
    return []


def _ordered(space: Space) -> list[str]:
    """Names after those they depend on, otherwise in the file's order."""
    graph = {key: [p for p in parameter.when if p in space] for key, parameter in space.items()}
    return list(TopologicalSorter(graph).static_order())


def _applies(parameter: SearchParameter, values: Values) -> bool:
    return all(
        parent in values and values[parent] in allowed for parent, allowed in parameter.when.items()
    )


def _contains(parameter: SearchParameter, value: Any) -> bool:
    if parameter.choices is not None:
        return value in parameter.choices
    low, high = _bounds(parameter)
    steps = (value - low) / parameter.step if parameter.step is not None else 0.0
    # (0.3 - 0.1) / 0.1 is 1.9999999999999998.
    return low <= value <= high and abs(steps - round(steps)) < 1e-9


def _bounds(parameter: SearchParameter) -> tuple[float, float]:
    assert parameter.low is not None
    assert parameter.high is not None
    return parameter.low, parameter.high


def _type(key: str) -> type | None:
    """int, float or bool; None for strings and other types."""
    section, _, name = key.rpartition(".")
    annotation = SECTIONS[section].model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return None
    members = [m for m in get_args(annotation) or (annotation,) if m is not NoneType]
    return members[0] if len(members) == 1 and members[0] in (int, float, bool) else None


def _invalid(key: str, value: Any) -> str | None:
    """Pydantic's message on why the section rejects the value; None if it is valid."""
    section, _, name = key.rpartition(".")
    if _type(key) in (int, float) and isinstance(value, bool):
        return "a number is needed"
    try:
        SECTIONS[section](**{**_REQUIRED.get(section, {}), name: value})
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return None


def _unknown(key: str) -> str:
    names = known_keys()
    nearest = get_close_matches(key, names, n=1, cutoff=0.5)
    if nearest:
        return f"`{key}` cannot be searched; did you mean `{nearest[0]}`?"
    return f"`{key}` cannot be searched; valid names are {', '.join(names)}"
