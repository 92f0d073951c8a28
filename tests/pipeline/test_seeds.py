"""A job's seeds: each has its own teachers, soft targets, students and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.training_corpus import make_corpus

from multistill.corpora.manifest import read_manifest
from multistill.distillation import stage
from multistill.distillation.files import SOFT_TARGETS
from multistill.pipeline import jobfile
from multistill.pipeline.parts import parts_of
from multistill.pipeline.seeds import SEEDS, inputs_of, soft_targets_folder, teachers_of
from multistill.pipeline.step import StepRun
from multistill.pipeline.steps import distill
from multistill.pipeline.steps.distill import Distill
from multistill.pipeline.steps.training import Students, Teacher
from multistill.tracking.logger import NullLogger
from multistill.training.model_store import ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace

JOB = "name: small\ncorpora: [{kind: demo}]\nseed: 40\n"
Trained = dict[str, tuple[TrainingTask, dict[str, str]]]


class Trainings:
    """The three training steps of a job on a real manifest, with models that are names only."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        self.job = jobfile.parse(JOB, "job.yaml", overrides)
        self.folder, self.workspace = folder, Workspace(folder)
        self.trained: Trained = {}
        self.read: dict[Path, tuple[Sequence[Path], Mapping[int, Path]]] = {}
        """Per file of soft targets, the teachers on all rows and those of the folds."""
        monkeypatch.setattr(ModelStore, "train", self._train)
        monkeypatch.setattr(ModelStore, "refuse_other_data", lambda *_: None)
        monkeypatch.setattr(distill, "on_cluster", self._on_cluster)
        if not (folder / "manifest.parquet").exists():
            make_corpus(folder)
        clips = len(read_manifest(folder))
        data = {"summary": {"splits": {"train": clips}}}
        names = ("manifest", "features", "statistics")
        self.artifacts = {name: Artifact(name, name, folder, data) for name in names}
        self._make("teachers", Teacher)
        self._make("soft_targets", Distill)
        self._make("students", Students)

    def _make(self, name: str, step: Callable[..., Any]) -> None:
        out = self.folder / name
        run = StepRun(self.artifacts, out, NullLogger(), "f")
        summary = step(self.job, self.workspace).build(run)
        self.artifacts[name] = Artifact(name, name, out, {"summary": summary})

    def _train(
        self, planned: Sequence[tuple[TrainingTask, dict[str, str]]], *_: object
    ) -> dict[str, Any]:
        self.trained |= {task.name: (task, inputs) for task, inputs in planned}
        return {
            "models": {
                task.name: {
                    "fingerprint": ModelStore._fingerprint(task, inputs),
                    "record_id": None,
                    "role": task.role,
                    "seed": task.seed,
                    "fold": task.leave_out_fold,
                }
                for task, inputs in planned
            }
        }

    def _on_cluster(self, function: object, *arguments: Any) -> dict[str, int]:
        assert function is stage.soft_targets
        _, _, teachers, folds, _, _, out = arguments
        assert out not in self.read
        self.read[out] = (teachers, folds)
        return {"rows": 1}

    def of_seed(self, seed: int) -> Trained:
        return {name: found for name, found in self.trained.items() if found[0].seed == 40 + seed}


@pytest.mark.parametrize("targets", ["in-sample", "out-of-fold"])
@pytest.mark.parametrize(("seeds", "ensemble"), [(1, 1), (3, 1), (2, 3)])
def test_every_seed_learns_from_its_own_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, ensemble: int, targets: str
) -> None:
    overrides = (f"seeds={seeds}", f"teacher.seeds={ensemble}", f"distillation.targets={targets}")
    made = Trainings(tmp_path, monkeypatch, *overrides)
    index = made.artifacts["teachers"].summary["models"]
    by_seed = teachers_of(made.job, index)
    named = [name for teachers in by_seed for name in teachers.names]
    assert sorted(named) == sorted(index), "every teacher belongs to one seed"
    assert {len(teachers.ensemble) for teachers in by_seed} == {ensemble}
    assert {len(teachers.folds) for teachers in by_seed} == {4 if targets == "out-of-fold" else 0}
    assert len({(model["seed"], model["fold"]) for model in index.values()}) == len(index)
    store = ModelStore(made.workspace)
    files = [
        soft_targets_folder(made.folder / "soft_targets", n) / SOFT_TARGETS for n in range(seeds)
    ]
    assert list(made.read) == files
    for teachers, (on_all, of_folds) in zip(by_seed, made.read.values(), strict=True):
        assert list(on_all) == [store.folder(index[name]) for name in teachers.ensemble]
        assert of_folds == {
            fold: [store.folder(index[name]) for name in names]
            for fold, names in teachers.folds.items()
        }
    for number, file in enumerate(files):
        students = [t for t, _ in made.of_seed(number).values() if t.role == "student"]
        assert len(students) == len(made.job.students)
        assert {task.soft_targets for task in students} == {str(file)}
    [teacher] = Teacher(made.job, made.workspace).candidates(made.artifacts["teachers"])
    assert [len(folders) for folders in teacher.repeats] == [ensemble] * (seeds - 1)


def test_seeds_that_are_added_leave_the_trained_ones_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, three = (fingerprints(tmp_path, monkeypatch, f"seeds={n}") for n in (2, 3))
    for role in two:
        assert len(two[role]) * 3 == len(three[role]) * 2
        assert two[role] < three[role]
    other = fingerprints(tmp_path, monkeypatch, "seeds=2", "teacher.train.epochs=3")
    assert other["control"] == two["control"]
    assert not other["student"] & two["student"], "its teacher is part of a student's identity"


@pytest.mark.parametrize("targets", ["in-sample", "out-of-fold"])
def test_the_tasks_of_an_array_of_seeds_train_the_models_of_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: str
) -> None:
    common = f"distillation.targets={targets}"
    whole = fingerprints(tmp_path, monkeypatch, "seeds=3", common)
    _, train, _ = parts_of(jobfile.parse(JOB, "job.yaml", ["seeds=3", common]), "seeds")
    tasks = [
        fingerprints(tmp_path, monkeypatch, common, *overrides_in(train.options + options))
        for options in train.tasks
    ]
    for role, expected in whole.items():
        assert set().union(*(task[role] for task in tasks)) == expected
        assert sum(len(task[role]) for task in tasks) == len(expected)


def overrides_in(options: Sequence[str]) -> list[str]:
    return [value for name, value in pairwise(options) if name == "--set"]


def fingerprints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> dict[str, set[str]]:
    """Of the models of a job, by role."""
    found: dict[str, set[str]] = {"teacher": set(), "student": set(), "control": set()}
    for task, inputs in Trainings(folder, monkeypatch, *overrides).trained.values():
        found[task.role].add(ModelStore._fingerprint(task, inputs))
    return found


def test_a_model_that_learnt_from_another_seeds_teacher_has_other_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Trainings(tmp_path, monkeypatch, "seeds=3")
    step = Students(made.job, made.workspace)
    prints = made.artifacts["soft_targets"].summary[SEEDS]
    assert len(set(prints)) == 3
    for number in range(3):
        for task, inputs in made.of_seed(number).values():
            if task.role != "teacher":
                expected = inputs_of(task, step.inputs(made.artifacts), made.artifacts)
                assert inputs == expected
                known = inputs["soft_targets"] in prints
                assert known is (task.role == "student")
                assert inputs["soft_targets"] in (prints[number], "soft_targets")
