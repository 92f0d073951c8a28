"""Steps that train: which teachers are trained, and when their pooled states are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training_corpus import make_corpus

from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.steps.training import Distill, Teacher
from multistill.search.space import check_space, known_keys
from multistill.workspace import Artifact, Workspace

JOB = "name: small\ncorpora: [{kind: demo}]\n"


@pytest.mark.parametrize(
    ("more", "pooled"),
    [
        ("", False),
        ("distillation: {hint_weight: 0.5}\n", True),
        ("distillation: {cka_weight: 0.5}\n", True),
        ("search: {space: {distillation.hint_weight: {low: 0.01, high: 100, log: true}}}\n", True),
        (
            "search: {enabled: false, "
            "space: {distillation.hint_weight: {low: 0.01, high: 100, log: true}}}\n",
            False,
        ),
    ],
)
def test_pooled_states_are_computed_if_the_job_or_its_search_uses_them(
    tmp_path: Path, more: str, pooled: bool
) -> None:
    job = jobfile.parse(JOB + more, "job.yaml")
    assert Distill(job, Workspace(tmp_path)).config()["pooled"] is pooled


def test_the_weights_of_representation_losses_can_be_searched() -> None:
    assert {"distillation.hint_weight", "distillation.cka_weight"} <= set(known_keys())
    job = jobfile.parse(
        JOB + "search: {space: {distillation.cka_weight: {choices: [0, 0.3, 1.0]}}}\n", "job.yaml"
    )
    assert check_space(job.search.space, job.searched_student()) == []


def prepared_teacher(folder: Path, sessions: set[int]) -> tuple[Teacher, dict[str, Artifact]]:
    """The teacher step and its inputs, with these sessions only (fold: session % 4)."""
    make_corpus(folder)
    table = read_manifest(folder)
    keep = [int(name[1:]) in sessions for name in table["session"].to_pylist()]
    write_manifest(table.filter(keep), folder)
    teacher = Teacher(jobfile.parse(JOB, "job.yaml"), Workspace(folder))
    meta = {"summary": {"splits": {"train": 40}}}
    return teacher, {name: Artifact(name, name, folder, meta) for name in ("manifest", "features")}


def test_only_folds_with_training_rows_get_a_teacher(tmp_path: Path) -> None:
    teacher, artifacts = prepared_teacher(tmp_path, {1, 3, 8, 9})  # 8: validation, fold 0
    tasks = teacher.tasks(artifacts)
    assert [task.name for task in tasks] == ["teacher", "teacher-fold1", "teacher-fold3"]
    assert [task.leave_out_fold for task in tasks] == [None, 1, 3]
    assert {task.role for task in tasks} == {"teacher"}


def test_a_single_fold_is_refused_before_the_features_stage(tmp_path: Path) -> None:
    teacher, artifacts = prepared_teacher(tmp_path, {3, 7, 8, 9})
    teacher.preflight({})  # without a manifest there is nothing to check
    with pytest.raises(UsageError, match=r"split\.folds.*distillation\.targets: in-sample"):
        teacher.preflight({"manifest": artifacts["manifest"]})
