"""Recipes: the lists of steps that a job file can choose from with `recipe:`.

`distillation` is the default. A recipe of your own is a `Recipe` object in a module here, with
a line in `RECIPES`; docs/extending.md has a complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.errors import UsageError
from multistill.pipeline.step import Step
from multistill.workspace import Workspace

RECIPES = {
    "distillation": "multistill.pipeline.recipes.distillation",
    "features-only": "multistill.pipeline.recipes.features_only",
    "pretrain": "multistill.pipeline.recipes.pretrain",
    "continual": "multistill.pipeline.recipes.continual",
}
"""Name -> module with a `RECIPE`; imported when a job first asks for it."""


@dataclass(frozen=True)
class Recipe:
    """A method, as the steps that a job runs in order.

    Attributes:
        summary: one line for people.
        steps: makes the steps of a job.
        check: what is wrong with a job that every section accepts on its own: places in the job
            file and sentences.
        left_out: stages of the recipe that this job does not have, each with what to change in
            the job file to have it.
    """

    name: str
    summary: str
    steps: Callable[[JobConfig, Workspace], list[Step]]
    check: Callable[[JobConfig], Iterator[tuple[Location, str]]] = lambda job: iter(())
    left_out: Callable[[JobConfig], Mapping[str, str]] = lambda job: {}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    module = RECIPES.get(name)
    if module is None:
        near = get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"there is {', '.join(RECIPES)}"
        raise UsageError(f"recipe: there is no recipe `{name}`; {hint}")
    recipe: Recipe = import_module(module).RECIPE
    return recipe


def why_missing(job: JobConfig, workspace: Workspace, stage: str) -> str | None:
    """Why the job lacks a stage that it could have, with what to do.

    None if the job has the stage, or no recipe does.
    """
    own = get_recipe(job.recipe)
    if stage in {step.name for step in own.steps(job, workspace)}:
        return None
    if remedy := own.left_out(job).get(stage):
        return f"the job `{job.name}` has no stage `{stage}`; {remedy}"
    for name in RECIPES:
        recipe = get_recipe(name)
        if stage in {step.name for step in recipe.steps(job, workspace)} | {*recipe.left_out(job)}:
            return (
                f"the stage `{stage}` is one of the recipe `{name}`, and the job `{job.name}` has "
                f"the recipe `{job.recipe}`; set `recipe: {name}`"
            )
    return None


def steps_of(job: JobConfig, workspace: Workspace) -> list[Step]:
    """The steps of the job's recipe, in order."""
    return get_recipe(job.recipe).steps(job, workspace)
