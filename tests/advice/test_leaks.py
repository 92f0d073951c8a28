"""Leaks between the folds of a cross-validation, planted where they could happen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.advice import told
from helpers.training_corpus import make_corpus, make_task, run, trained, with_teacher

from multistill.config import EvaluationConfig
from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.distillation.targets import read_soft_targets, write_soft_targets
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.training.model_store import ModelStore
from multistill.workspace import Workspace

Corpus = tuple[Path, Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_test_clip_in_the_soft_targets(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "targets.parquet"
    student = with_teacher(make_task(corpus, epochs=1), path, 0.5)
    clean = read_soft_targets(path).ids
    tested = read_manifest(corpus[0]).filter(pa.compute.field("split") == "test")
    ids = [*clean, tested["utterance_id"][0].as_py()]
    write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.full(len(ids), -1))
    with told("so they are of another fold or split; remove that file and run the job again"):
        run(student, tmp_path / "a")
    path.unlink()
    run(with_teacher(make_task(corpus, epochs=1), path, 0.5), tmp_path / "b")


def test_a_model_of_another_fold(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws").open()
    store = ModelStore(workspace)

    def made(fold: str) -> dict[str, dict[str, object]]:
        name = f"{fold:0>16}"
        if workspace.find("models", name) is None:
            workspace.make("models", name, lambda out: {}, config={}, inputs={"manifest": fold})
        return {"teacher": {"fingerprint": name}}

    with told("so it may know these clips; remove the folder of its stage and run the job again"):
        store.refuse_other_data(made("1"), "2")
    store.refuse_other_data(made("2"), "2")


def test_a_test_speaker_in_the_training_part(corpus: Corpus, tmp_path: Path) -> None:
    trained(replace(make_task(corpus, epochs=1), name="audio"), tmp_path / "audio")
    folder = tmp_path / "fold"
    config = EvaluationConfig(latency_clips=0, resamples=100)
    candidates = [Candidate("audio", "student", [tmp_path / "audio"])]

    def score(move: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        table = read_manifest(corpus[0])
        part = table["split"].to_pylist()
        for row in [row for row, name in enumerate(part) if name == "test"][:move]:
            part[row] = "train"
        at = table.column_names.index("split")
        planted = table.set_column(at, "split", pa.array(part))
        write_manifest(planted, folder)
        evaluate([EvaluatedFold(folder, candidates, "p9")], corpus[1], config, folder)

    with told("so its models know who they are tested on; remove that folder and run"):
        score(1)
    score(0)
