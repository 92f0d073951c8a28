"""The step `label_shares`: which models it trains, and that it shares those with all labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from multistill.config import JobConfig
from multistill.errors import MultistillError
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.seeds import inputs_of
from multistill.pipeline.step import StepRun
from multistill.pipeline.steps.label_shares import LabelShares
from multistill.pipeline.steps.training import Students
from multistill.tracking.logger import NullLogger
from multistill.training.model_store import ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace

JOB = "name: small\ncorpora: [{kind: demo}]\n"
INPUTS = ("manifest", "features", "statistics", "soft_targets")


def parse(*overrides: str, section: str = "label_shares: true\n") -> JobConfig:
    return jobfile.parse(JOB + section, "job.yaml", overrides)


def built(
    step: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, TrainingTask], dict[str, str], dict[str, Any]]:
    """Tasks of a step by name, their fingerprints in the model store, and the step's summary."""
    tasks: list[TrainingTask] = []

    def train(
        _: object, planned: Sequence[tuple[TrainingTask, object]], *__: object
    ) -> dict[str, Any]:
        given = [task for task, _ in planned]
        tasks.extend(given)
        return {
            "models": {
                task.name: {"role": task.role, "record_id": None, "fingerprint": task.name}
                for task in given
            }
        }

    monkeypatch.setattr(ModelStore, "train", train)
    meta = {"summary": {"splits": {"train": 288}, "seeds": ["a", "b"]}}
    artifacts = {name: Artifact(name, name, folder, meta) for name in INPUTS}
    summary = step.build(StepRun(artifacts, folder, NullLogger(), "f"))
    fingerprints = {
        task.name: ModelStore._fingerprint(task, inputs_of(task, step.inputs(artifacts), artifacts))
        for task in tasks
    }
    return {task.name: task for task in tasks}, fingerprints, summary


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("seeds", [2, 5])
def test_students_and_controls_of_every_share_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabelled: bool, seeds: int
) -> None:
    job = parse(
        f"label_shares.seeds={seeds}",
        f"label_shares.unlabelled={str(unlabelled).lower()}",
        "label_shares.shares=[0.125, 0.5, 1.0]",
        "label_shares.students=[audio, text]",
    )
    step = LabelShares(job, Workspace(tmp_path))
    tasks, fingerprints, summary = built(step, tmp_path, monkeypatch)
    assert len(tasks) == len(set(fingerprints.values())) == 2 * 2 * 3 * seeds
    assert {name.rpartition("-seed")[0] for name in tasks} == {
        f"{student}-labels{share}{control}"
        for student in ("audio", "text")
        for share in ("12.5", "50", "100")
        for control in ("", "-control")
    }
    for name, task in tasks.items():
        distilled = "-control" not in name
        assert task.role == ("student" if distilled else "control")
        assert (task.distillation is not None) is distilled
        assert task.unlabelled is (unlabelled and distilled and task.label_share < 1)
        if distilled:
            control = tasks[name.replace("-seed", "-control-seed")]
            assert (control.seed, control.label_share) == (task.seed, task.label_share)
            assert control.train == task.train
    assert len({task.train.epochs for task in tasks.values()}) == 1, "an equal budget"
    candidates = step.candidates(Artifact("label_shares", "f", tmp_path, {"summary": summary}))
    assert [c.label_share for c in candidates if c.compare_to] == [
        (student, share) for student in ("text", "audio") for share in (0.125, 0.5, 1.0)
    ]
    assert {len(candidate.repeats) for candidate in candidates} == {seeds - 1}


def test_with_all_labels_they_are_the_trainings_of_the_step_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, workspace = parse("seeds=5"), Workspace(tmp_path)
    _, students, _ = built(Students(job, workspace), tmp_path, monkeypatch)
    _, shares, _ = built(LabelShares(job, workspace), tmp_path, monkeypatch)
    with_all = {value for name, value in shares.items() if "-labels100" in name}
    assert with_all == set(students.values())
    assert not set(students.values()) & (set(shares.values()) - with_all)


def test_the_stage_is_there_on_request_and_planned(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    names = [step.name for step in steps_of(parse(), workspace)]
    assert names.index("students") < names.index("label_shares") < names.index("evaluate")
    for section in ("", "label_shares: false\n"):
        without = steps_of(parse(section=section), workspace)
        assert "label_shares" not in [step.name for step in without]
    facts = describe(parse(f"workspace={tmp_path}", "label_shares.students=[audio]"))
    rows = {row["model"]: row["trainings"] for row in facts["models"]}
    assert rows["audio-labels"] == rows["audio-labels-control"] == 4 * 5
    assert "text-labels" not in rows


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("label_shares.seeds=3", True),
        ("label_shares.shares=[0.5]", True),
        ("label_shares.unlabelled=true", True),
        ("distillation.temperature=3", True),
        ("students.0.train.epochs=3", True),
        ("students.1.train.epochs=3", False),
        ("search=true", False),
        ("evaluation.resamples=200", False),
    ],
)
def test_the_stage_runs_again_if_what_decides_it_changed(
    tmp_path: Path, override: str, changes: bool
) -> None:
    students = "students: [{name: a, model: small-student}, {name: b, model: small-student}]\n"
    section = students + "label_shares: {students: [a]}\n"
    configs = [
        LabelShares(parse(*overrides, section=section), Workspace(tmp_path)).config()
        for overrides in ((), (override,))
    ]
    assert (configs[0] != configs[1]) is changes


@pytest.mark.parametrize(
    "section",
    [
        "label_shares:\n",
        "label_shares: {shares: []}\n",
        "label_shares: {shares: [0, 1]}\n",
        "label_shares: {shares: [0.5, 1.5]}\n",
        "label_shares: {shares: [0.5, 0.5]}\n",
        "label_shares: {shares: [0.5, 0.1]}\n",
        "label_shares: {shares: [.nan]}\n",
        "label_shares: {seeds: 1}\n",
        "label_shares: {students: []}\n",
        "label_shares: {students: [adio]}\n",
        "label_shares: {students: [audio, audio]}\n",
        "students: [{name: a-labels10, model: small-student}]\n",
        "students: [{name: a, model: small-student, train: {oversample: true}}]\n"
        "label_shares: {unlabelled: true}\n",
    ],
)
def test_sections_that_cannot_work_are_refused_at_their_line(section: str) -> None:
    with pytest.raises(MultistillError, match=r"label|student"):
        job = parse(section=section)
        steps_of(job, Workspace(Path("/nonexistent")))
