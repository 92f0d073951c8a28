"""The model store: equal trainings are run once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.training_corpus import make_task

from multistill.tracking.logger import NullLogger
from multistill.training.model_store import FILES, ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Workspace


def test_two_names_for_one_training_are_trained_once(
    corpus: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(tasks: list[TrainingTask], work: Path, logger: object) -> list[dict[str, str]]:
        for task in tasks:
            trained.append(task.name)
            (work / task.name).mkdir(parents=True)
            for file in FILES:
                (work / task.name / file).write_text(task.name)
        return [{"name": task.name, "record_id": task.name} for task in tasks]

    monkeypatch.setattr("multistill.training.launcher.train", train)
    base = make_task(corpus, "a")
    tasks = [base, replace(base, name="b"), replace(base, name="c", seed=9)]
    model_store = ModelStore(Workspace(tmp_path / "workspace").open())
    models = model_store.train([(task, {}) for task in tasks], tmp_path / "out", NullLogger())[
        "models"
    ]
    assert trained == ["a", "c"]
    assert models["a"] == models["b"] != models["c"]
    model_store.train([(task, {}) for task in tasks], tmp_path / "out", NullLogger())
    assert trained == ["a", "c"]
