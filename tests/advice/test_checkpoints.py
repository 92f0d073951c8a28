"""Advice of `multistill evaluate --all`: provoked and followed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.advice import told
from helpers.encoded_jobs import add_model, encode
from helpers.evaluation_case import EvaluationCase
from helpers.finished_jobs import note_as_run

from multistill.config import TasksConfig
from multistill.errors import UsageError
from multistill.pipeline.checkpoints import evaluate_all, find_job
from multistill.tracking import models
from multistill.tracking.server import ServerUnavailableError


def test_the_job_that_says_which_clips(tmp_path: Path) -> None:
    with told("no job has run in `{}`, so nothing says on which clips to score; give a job file"):
        find_job(None, tmp_path)
    file = tmp_path / "job.yaml"
    assert find_job(str(file), tmp_path) == file
    job = note_as_run(tmp_path, name="emo")
    for name in (None, "emo"):
        assert find_job(name, tmp_path).name.startswith("emo-")
    with told("the clips of the job `{}` are not encoded in `{}` yet; run it with `--until feat"):
        evaluate_all(str(tmp_path), job)


def test_the_models(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = encode(evaluation_case, tmp_path, monkeypatch)
    (tmp_path / "empty").mkdir()
    with told("there is no model below `{}`; give a folder that holds folders with"):
        evaluate_all(str(tmp_path / "empty"), job)
    monkeypatch.setattr(models, "experiment_runs", lambda *_: None)
    with told("`{}` is neither a folder nor an experiment on {}; give one of them"):
        evaluate_all("nothing", job)
    monkeypatch.setattr(models, "experiment_runs", lambda *_: [])
    with told("no run of the experiment `{}` has a model in `{}` or among its artifacts; give"):
        evaluate_all("empty", job)
    with told("--fold {}: the job `{}` is no cross-validation; leave --fold out", UsageError):
        evaluate_all(str(tmp_path), job, fold=1)
    add_model(evaluation_case, tmp_path, "audio", "0" * 16)
    assert evaluate_all(str(tmp_path / "models"), job)["models"]
    alone = job.model_copy(update={"tasks": TasksConfig(valence=1.0)})
    with told("has dimensions alone (`tasks`), and `evaluate --all` scores classes; name a job"):
        evaluate_all(str(tmp_path / "models"), alone)


def test_the_fold(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = encode(evaluation_case, tmp_path, monkeypatch, folds=2, protocol={"kind": "k-fold"})
    add_model(evaluation_case, tmp_path, "audio", "0" * 16)
    for fold in (None, 3):
        with told("the job `{}` tests every clip in one of {} folds; name the one whose test"):
            evaluate_all(str(tmp_path / "models"), job, fold)
    assert evaluate_all(str(tmp_path / "models"), job, 2)["models"]


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ServerUnavailableError("connection refused")

    monkeypatch.setattr(models, "call_mlflow", refuse)
    with told("the experiment `{}` cannot be read from {} ({}); start the server, or give a"):
        models.experiment_runs("http://localhost:1", "e")
