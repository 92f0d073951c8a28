"""The job's seed does not decide the split."""

from __future__ import annotations

from pathlib import Path

import pytest

from multistill.pipeline import jobfile
from multistill.pipeline.steps.data import Prepare
from multistill.workspace import Workspace

JOB = "name: t\ncorpora: [{kind: demo}]\n"


def manifest_name(workspace: Path, *overrides: str) -> str:
    step = Prepare(jobfile.parse(JOB, "job.yaml", overrides), Workspace(workspace))
    return step.fingerprint({})


@pytest.mark.parametrize("override", ["seed=1", "seed=5", "seeds=4", "teacher.seeds=2"])
def test_jobs_with_other_seeds_use_the_same_manifest(tmp_path: Path, override: str) -> None:
    assert manifest_name(tmp_path, override) == manifest_name(tmp_path)


def test_another_split_seed_is_another_manifest(tmp_path: Path) -> None:
    assert manifest_name(tmp_path, "split.seed=7") != manifest_name(tmp_path)
