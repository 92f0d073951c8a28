"""Clips without labels: only students see them, they weigh like others, and budgets are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_corpus import (
    Corpus,
    make_corpus,
    make_task,
    run,
    weights,
    with_teacher,
    without_labels,
)

from multistill.config import DistillationConfig
from multistill.corpora.manifest import UNLABELLED, read_manifest, write_manifest
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_soft_targets, read_states
from multistill.errors import MultistillError
from multistill.features.collate import collate
from multistill.features.statistics import training_statistics
from multistill.inference.predict import predict
from multistill.models.base import ModelOutput
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.training.data import TrainingData
from multistill.training.labelled import draw_labelled
from multistill.training.loop import fit
from multistill.training.objective import Objective
from multistill.training.prefetch import MicroBatch
from multistill.training.task import TrainingTask


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Sessions 5 to 7 of the training part as a corpus without labels."""
    folder = tmp_path_factory.mktemp("wild")
    return without_labels(make_corpus(folder / "corpus"), (5, 6, 7), folder / "manifest")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, wild: Corpus) -> Corpus:
    """The same corpus before the clips without labels came."""
    folder = tmp_path_factory.mktemp("small")
    rows = read_manifest(wild[0])
    keep = np.array(rows["split"].to_pylist()) != UNLABELLED
    return write_manifest(rows.filter(keep), folder), wild[1]


def unlabelled_ids(corpus: Corpus) -> list[str]:
    rows = read_manifest(corpus[0]).to_pylist()
    return [row["utterance_id"] for row in rows if row["split"] == UNLABELLED]


def teacher_files(corpus: Corpus, folder: Path, models: int = 3) -> list[Path]:
    folders = [folder / f"model-{seed}" for seed in range(models)]
    for seed, each in enumerate(folders):
        torch.manual_seed(seed)
        save_model(build(make_task(corpus).spec, 12, 8), each, ModelInfo("teacher"))
    return folders


def distilled(corpus: Corpus, folder: Path, **settings: float) -> TrainingTask:
    """A student of the stage's own soft targets of a random teacher."""
    path = folder / "soft.parquet"
    soft_targets(*corpus, teacher_files(corpus, folder, 1), {}, True, True, path)
    distillation = DistillationConfig(**settings)
    return replace(make_task(corpus), soft_targets=str(path), distillation=distillation)


def test_only_a_student_is_trained_on_them(wild: Corpus, small: Corpus, tmp_path: Path) -> None:
    student = distilled(wild, tmp_path)
    control = TrainingData.open(student.control("control"))
    teacher = TrainingData.open(replace(make_task(wild), role="teacher"))
    before = TrainingData.open(make_task(small))
    ids = unlabelled_ids(wild)
    opened = TrainingData.open(student)
    assert opened.train.ids == [*before.train.ids, *ids]
    assert opened.train.unlabelled == len(ids)
    assert teacher.train.ids == control.train.ids == before.train.ids == opened.part
    assert opened.valid.ids == before.valid.ids
    # What the states are standardised by is the same for all of them.
    expected = training_statistics(opened.store, before.train.ids)
    for data in (opened, control, teacher):
        np.testing.assert_array_equal(data.statistics(student).audio.mean, expected.audio.mean)
    assert (teacher.passes, opened.passes) == (1, 1)
    assert control.passes == round(len(opened.train) / len(control.train)) == 2


def test_a_teacher_of_such_a_job_has_the_weights_of_the_job_without(
    wild: Corpus, small: Corpus, tmp_path: Path
) -> None:
    for name, corpus in (("wild", wild), ("small", small)):
        run(replace(make_task(corpus, epochs=2), role="teacher"), tmp_path / name)
    assert torch.equal(weights(tmp_path / "wild"), weights(tmp_path / "small"))


def batch(data: TrainingData, rows: np.ndarray) -> MicroBatch:
    train = data.train
    assert train.teacher_logits is not None
    assert train.label_weights is not None and train.teacher_weights is not None
    return MicroBatch(
        rows.tolist(),
        collate(data.store, [train.ids[row] for row in rows]),
        torch.from_numpy(train.shares[rows]),
        torch.from_numpy(train.labels[rows]),
        torch.from_numpy(train.dimensions[rows]),
        teacher_logits=torch.from_numpy(train.teacher_logits[rows]),
        label_weights=torch.from_numpy(train.label_weights[rows]),
        teacher_weights=torch.from_numpy(train.teacher_weights[rows]),
    )


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_their_loss_is_the_teachers_and_that_of_others_is_unchanged(
    wild: Corpus, small: Corpus, tmp_path: Path, loss: str
) -> None:
    task = distilled(wild, tmp_path)
    assert task.distillation is not None
    task = replace(task, distillation=DistillationConfig(loss=loss, weight=0.25))
    data = TrainingData.open(task)
    torch.manual_seed(0)
    logits = torch.randn(len(data.train), 7)
    rows = np.arange(len(data.train))

    def losses(task: TrainingTask, rows: np.ndarray) -> torch.Tensor:
        output = ModelOutput(logits[rows], torch.zeros(len(rows), 3))
        objective: torch.Tensor = Objective(task, data.train, 3)(output, batch(data, rows), 0.5)
        return objective

    both = losses(task, rows)
    unlabelled = rows[-data.train.unlabelled :]
    teacher_alone = replace(task, distillation=DistillationConfig(loss=loss, weight=1.0))
    if loss != "dist":  # whose intra-class term is of the batch
        labels = replace(task, distillation=DistillationConfig(loss=loss, weight=0.0))
        own = rows[data.train.own]
        torch.testing.assert_close(
            both[own], 0.25 * losses(teacher_alone, own) + 0.75 * losses(labels, own)
        )
        assert not losses(labels, unlabelled).any()
    torch.testing.assert_close(both[unlabelled], 0.25 * losses(teacher_alone, rows)[unlabelled])


def test_a_share_of_the_labels_hides_none_of_them(wild: Corpus, tmp_path: Path) -> None:
    task = replace(distilled(wild, tmp_path), label_share=0.5)
    everything = TrainingData.open(replace(task, label_share=1.0)).train
    labels = everything.labels[everything.own]
    drawn = draw_labelled(labels, 0.5, task.seed)
    taken = TrainingData.open(task).train
    assert taken.ids == [*(everything.ids[row] for row in drawn), *unlabelled_ids(wild)]
    hidden = TrainingData.open(replace(task, unlabelled=True)).train
    assert hidden.ids == everything.ids
    assert hidden.labelled.tolist() == drawn.tolist()
    assert hidden.label_weights is not None and hidden.teacher_weights is not None
    assert hidden.label_weights[hidden.own].mean() == pytest.approx(1.0)
    assert (hidden.teacher_weights == 1).all()


def test_a_text_student_does_not_learn_from_clips_without_a_transcript(
    wild: Corpus, tmp_path: Path
) -> None:
    task = distilled(wild, tmp_path)
    text = replace(task, spec=replace(task.spec, modality="text"))
    data = TrainingData.open(text)
    tokens = data.store.text_tokens(unlabelled_ids(wild))
    assert 0 < data.train.unlabelled == int((tokens > 0).sum()) < len(tokens)


def test_an_interrupted_training_ends_with_the_same_weights(wild: Corpus, tmp_path: Path) -> None:
    task = distilled(wild, tmp_path, hint_weight=0.5)
    run(task, tmp_path / "whole")
    next(iter(fit(task, state_dir=tmp_path / "resumed", device="cpu")))
    run(task, tmp_path / "resumed")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))


def test_states_of_clips_without_labels_come_from_the_teachers_of_the_folds(
    wild: Corpus, tmp_path: Path
) -> None:
    """And their targets from the teacher of all clips: neither has seen them."""
    models = teacher_files(wild, tmp_path, 4)
    path = tmp_path / "soft.parquet"
    folds = {fold: [folder] for fold, folder in enumerate(models[1:])}
    summary = soft_targets(*wild, models[:1], folds, True, False, path)
    targets = read_soft_targets(path)
    row_of = {name: row for row, name in enumerate(targets.ids)}
    ids = [name for name in unlabelled_ids(wild) if name in row_of]
    assert summary["unlabelled_rows"] == len(ids)
    store = TrainingData.open(make_task(wild)).store
    outputs = [predict(load_model(each), store, ids, "cpu") for each in models]
    rows = [row_of[name] for name in ids]
    np.testing.assert_allclose(targets.outputs[rows], outputs[0].logits, atol=1e-5)
    assert (targets.fold[rows] == -1).all()
    stored = read_states(path)
    kept, pooled, teacher = stored.rows, stored.pooled, stored.teacher
    index = {row: number for number, row in enumerate(kept.tolist())}
    for number, row in enumerate(rows):
        own = outputs[int(teacher[index[row]])].pooled
        assert own is not None
        np.testing.assert_allclose(pooled[index[row]], own[number], atol=1e-5)
    assert set(teacher.tolist()) == {1, 2, 3}


def test_targets_that_lack_them_are_refused(wild: Corpus, small: Corpus, tmp_path: Path) -> None:
    student = with_teacher(make_task(small), tmp_path / "soft.parquet", 0.5)
    with pytest.raises(MultistillError, match="lack 27 of 72 training utterances"):
        TrainingData.open(replace(student, manifest=str(wild[0])))
