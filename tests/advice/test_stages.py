"""Advice about stages that a job does not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.runner import _stage_index
from multistill.workspace import Workspace

JOB = "name: x\ncorpora: [{{kind: demo}}]\nrecipe: {}\n"


@pytest.mark.parametrize(
    ("recipe", "stage", "advice", "following"),
    [
        ("distillation", "search", "add `{}: true` to the job file", ["search=true"]),
        (
            "distillation",
            "robustness",
            "set `evaluation.robustness: true` in the job file",
            ["evaluation.robustness=true"],
        ),
        (
            "distillation",
            "copies",
            "set `features.augmentation.copies` in the job file",
            ["features.augmentation.copies=2"],
        ),
        (
            "features-only",
            "functionals",
            "set `evaluation.opensmile: [egemaps]` in the job file",
            ["evaluation.opensmile=[egemaps]"],
        ),
        ("distillation", "label_shares", "add `{}: true` to the job file", ["label_shares=true"]),
        ("distillation", "serch", "--until {}: did you mean `{}`? {}", ["search=true"]),
        *(
            (
                recipe,
                stage,
                "the stage `{}` is one of the recipe `{}`, and the job `{}` has the recipe `{}`; "
                "set `recipe: {}`",
                following,
            )
            for recipe, stage, following in (
                ("features-only", "teacher", ["recipe=distillation"]),
                ("distillation", "probe", ["recipe=features-only"]),
                ("features-only", "search", ["recipe=distillation", "search=true"]),
            )
        ),
    ],
)
def test_a_stage_that_the_job_lacks_is_there_once_the_advice_is_followed(
    tmp_path: Path, recipe: str, stage: str, advice: str, following: list[str]
) -> None:
    workspace, text = Workspace(tmp_path), JOB.format(recipe)
    for step in range(len(following)):
        job = jobfile.parse(text, "x.yaml", following[:step])
        with pytest.raises(UsageError) as refused:
            _stage_index(steps_of(job, workspace), stage)
        if step == 0:
            pattern = ".*".join(re.escape(part) for part in advice.split("{}"))
            assert re.search(pattern, str(refused.value))
    if near := re.search(r"did you mean `(\w+)`", str(refused.value)):
        stage = near[1]
    job = jobfile.parse(text, "x.yaml", following)
    assert _stage_index(steps_of(job, workspace), stage) >= 0
