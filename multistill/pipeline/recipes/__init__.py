"""Recipes: the lists of steps that a job file can choose from with `recipe:`.

`distillation` is the default. A recipe of your own is a `Recipe` object in a module here, with
a line in `RECIPES`; docs/extending.md has a complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline.step import Step
from multistill.workspace import Workspace

Location = tuple[str | int, ...]
"""A location in the job file, e.g. `("students", 0, "model")`."""

RECIPES = {
    "distillation": "multistill.pipeline.recipes.distillation",
    "features-only": "multistill.pipeline.recipes.features_only",
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
    """

    name: str
    summary: str
    steps: Callable[[JobConfig, Workspace], list[Step]]
    check: Callable[[JobConfig], Iterator[tuple[Location, str]]] = lambda job: iter(())


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


def steps_of(job: JobConfig, workspace: Workspace) -> list[Step]:
    """The steps of the job's recipe, in order."""
    return get_recipe(job.recipe).steps(job, workspace)
