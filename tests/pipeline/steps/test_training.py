"""Steps that train: which teachers are trained, and when their pooled states are computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.training_corpus import make_corpus

from multistill.config import TrainSection
from multistill.config.models import STATE_WEIGHTS
from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe
from multistill.pipeline.step import StepRun
from multistill.pipeline.steps.distill import Distill
from multistill.pipeline.steps.training import Students, Teacher
from multistill.search.space import check_space, known_keys
from multistill.tracking.logger import NullLogger
from multistill.training.defaults import resolve_training
from multistill.training.model_store import ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace

INPUTS = ("manifest", "features", "statistics")
JOB = "name: small\ncorpora: [{kind: demo}]\n"


@pytest.mark.parametrize(
    ("more", "states", "sequences"),
    [
        ("", False, False),
        ("distillation: {hint_weight: 0.5}\n", True, False),
        ("distillation: {cka_weight: 0.5}\n", True, False),
        ("distillation: {relation_weight: 0.5}\n", True, False),
        ("distillation: {sequence_weight: 0.5}\n", True, True),
        (
            "search: {space: {distillation.hint_weight: {low: 0.01, high: 9, log: true}}}\n",
            True,
            False,
        ),
        ("search: {space: {distillation.sequence_weight: {choices: [0, 1]}}}\n", True, True),
        (
            "search: {enabled: false, "
            "space: {distillation.hint_weight: {low: 0.01, high: 100, log: true}}}\n",
            False,
            False,
        ),
    ],
)
def test_states_are_computed_if_the_job_or_its_search_uses_them(
    tmp_path: Path, more: str, states: bool, sequences: bool
) -> None:
    config = Distill(jobfile.parse(JOB + more, "job.yaml"), Workspace(tmp_path)).config()
    assert (config["states"], config["sequences"]) == (states, sequences)


def test_the_weights_of_representation_losses_can_be_searched() -> None:
    for weight in STATE_WEIGHTS:
        assert f"distillation.{weight}" in known_keys()
        space = f"search: {{space: {{distillation.{weight}: {{choices: [0, 0.3, 1.0]}}}}}}\n"
        job = jobfile.parse(JOB + space, "job.yaml")
        assert check_space(job.search.space, job.searched_student()) == []


def prepared_teacher(folder: Path, sessions: set[int]) -> tuple[Teacher, dict[str, Artifact]]:
    """The teacher step and its inputs, with these sessions only (fold: session % 4)."""
    make_corpus(folder)
    table = read_manifest(folder)
    keep = [int(name[1:]) in sessions for name in table["session"].to_pylist()]
    write_manifest(table.filter(keep), folder)
    teacher = Teacher(jobfile.parse(JOB, "job.yaml"), Workspace(folder))
    meta = {"summary": {"splits": {"train": 40}}}
    return teacher, {name: Artifact(name, name, folder, meta) for name in INPUTS}


def test_every_model_of_an_ensemble_has_its_seeds_and_folds(tmp_path: Path) -> None:
    _, artifacts = prepared_teacher(tmp_path, {1, 3, 8, 9})
    several = "{models: [small-teacher, {preset: small-text-student, width: 32}], seeds: 2}"
    teacher = Teacher(jobfile.parse(f"{JOB}teacher: {several}\n", "job.yaml"), Workspace(tmp_path))
    tasks = {task.name: task for task in teacher.tasks(artifacts)}
    assert list(tasks) == [
        *("teacher-1-seed0", "teacher-1-seed1", "teacher-2-seed0", "teacher-2-seed1"),
        *("teacher-1-fold1", "teacher-1-fold3", "teacher-2-fold1", "teacher-2-fold3"),
    ]
    assert {tasks[name].spec.modality for name in tasks if "teacher-1" in name} == {"multimodal"}
    assert {tasks[name].spec.width for name in tasks if "teacher-2" in name} == {32}
    planned = teacher.plan({}, artifacts)["models"]
    assert [(row["model"], row["trainings"]) for row in planned] == [
        *(("teacher-1", 2), ("teacher-1-fold", 2), ("teacher-2", 2), ("teacher-2-fold", 2)),
    ]


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


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_every_student_and_control_is_trained_from_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    tasks: list[TrainingTask] = []

    def train(
        _: object, planned: Sequence[tuple[TrainingTask, object]], *__: object
    ) -> dict[str, Any]:
        given = [task for task, _ in planned]
        tasks.extend(given)
        entry = {"role": "student", "record_id": None}
        return {"models": {t.name: {**entry, "fingerprint": t.name} for t in given}}

    monkeypatch.setattr(ModelStore, "train", train)
    job = jobfile.parse(JOB, "job.yaml", [f"seeds={seeds}", "seed=40"])
    step = Students(job, Workspace(tmp_path))
    meta = {"summary": {"splits": {"train": 288}, "seeds": [f"s{n}" for n in range(seeds)]}}
    inputs = (*INPUTS, "soft_targets")
    artifacts = {name: Artifact(name, name, tmp_path, meta) for name in inputs}
    summary = step.build(StepRun(artifacts, tmp_path, NullLogger(), "f"))

    assert len({task.name for task in tasks}) == len(tasks) == 2 * seeds * len(job.students)
    for student in job.students:
        for role, suffix in (("student", ""), ("control", "-control")):
            members = [
                task for task in tasks if task.name in summary["members"][student.name + suffix]
            ]
            assert [task.seed for task in members] == list(range(40, 40 + seeds))
            assert {task.role for task in members} == {role}
            assert {(task.train.learning_rate, task.train.batch_size) for task in members} == {
                (1e-3, 16)
            }
    candidates = step.candidates(Artifact("students", "f", tmp_path, {"summary": summary}))
    assert {len(candidate.repeats) for candidate in candidates} == {seeds - 1}
    assert [c.compare_to for c in candidates if c.compare_to] == [
        f"{student.name}-control" for student in job.students
    ]


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ([], {"teacher": 1, "teacher-fold": 5, "multimodal": 1, "multimodal-control": 1}),
        (
            ["seeds=3", "teacher.seeds=2"],
            {"teacher": 6, "teacher-fold": 15, "multimodal": 3, "multimodal-control": 3},
        ),
        (["teacher.seeds=2", "distillation.targets=in-sample"], {"teacher": 2, "teacher-fold": 0}),
        (["split.folds=3"], {"teacher-fold": 3}),
        (
            ["search.trials=9", "search.retrain=2", "search.seeds=4"],
            {
                "multimodal-trial": 9,
                "multimodal-search": 8,
                "multimodal-search-control": 4,
            },
        ),
        (["search=false"], {"multimodal-trial": 0, "multimodal-search": 0}),
    ],
)
def test_the_plan_counts_every_training(
    tmp_path: Path, overrides: list[str], counts: dict[str, int]
) -> None:
    job = jobfile.parse(JOB, "job.yaml", [*overrides, f"workspace={tmp_path}"])
    facts = describe(job)
    planned = {row["model"]: row["trainings"] for row in facts["models"]}
    assert {name: planned.get(name, 0) for name in counts} == counts
    assert facts["trainings"] == sum(planned.values())
    assert {row["epochs"] for row in facts["models"]} == {None}, "the clips are not counted yet"
    assert {row["learning_rate"] for row in facts["models"]} == {1e-3}


def test_a_plan_after_prepare_has_every_number(tmp_path: Path) -> None:
    _, artifacts = prepared_teacher(tmp_path, {1, 3, 8, 9})
    student = "{name: a, model: {preset: small-student}, train: {epochs: 7}}"
    job = jobfile.parse(f"{JOB}students: [{student}]\n", "job.yaml")
    rows = Teacher(job, Workspace(tmp_path)).plan({}, artifacts)["models"]
    assert [(row["model"], row["trainings"]) for row in rows] == [
        ("teacher", 1),
        ("teacher-fold", 2),
    ]
    expected = resolve_training(TrainSection(), "small-teacher", 40)
    assert expected is not None
    assert {row["epochs"] for row in rows} == {expected.epochs}
    assert Students(job, Workspace(tmp_path)).plan({}, artifacts)["models"][0]["epochs"] == 7
