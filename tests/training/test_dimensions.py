"""Training of dimensions beside the classes: masks, scale, distillation, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_corpus import losses, make_corpus, make_task, run, trained, weights

from multistill.config import DistillationConfig
from multistill.distillation.targets import read_soft_targets, write_soft_targets
from multistill.errors import MultistillError, UsageError
from multistill.inference.predict import predict
from multistill.models.base import ModelOutput
from multistill.models.files import load_model, read_model_config
from multistill.training.data import TrainingData
from multistill.training.epochs import sampling_weights
from multistill.training.objective import Objective
from multistill.training.prefetch import Prefetcher
from multistill.training.task import TrainingTask

NAMES = ("valence", "arousal")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every seventh row has no class, the rows before have no valence."""
    return make_corpus(tmp_path_factory.mktemp("dimensions"), unlabelled=7)


def task_of(
    corpus: tuple[Path, Path], weight: float = 1.0, classes: int = 7, **train: object
) -> TrainingTask:
    base = make_task(corpus, **train)
    tasks = {"classes": 1.0, **dict.fromkeys(NAMES, weight)}
    if not classes:
        del tasks["classes"]
    spec = replace(base.spec, dimensions=NAMES, num_classes=classes)
    return replace(base, spec=spec, tasks=tasks)


@pytest.mark.parametrize("loss", ["ccc", "mse", "rmse"])
def test_dimensions_are_learnt_beside_the_classes(
    corpus: tuple[Path, Path], tmp_path: Path, loss: str
) -> None:
    task = task_of(corpus, dimension_loss=loss, epochs=12, metric="ccc")
    reports = run(task, tmp_path)
    ccc = losses(reports, "valid_ccc")
    assert max(ccc) > 0.5 and max(ccc) > ccc[0]
    assert max(losses(reports, "valid_macro_f1")) > 0.5
    best = reports[-1].metrics
    assert best["valid_ccc"] == pytest.approx(
        np.mean([best[f"valid_ccc_{name}"] for name in NAMES]), abs=1e-6
    )


def test_missing_labels_and_values_do_not_move_the_weights(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    """What stands in place of a missing value in memory is read by no loss."""
    task = task_of(corpus, epochs=1)
    data = TrainingData.open(task)
    assert 0 < len(data.train.labelled) < len(data.train)
    assert np.isnan(data.train.dimensions[:, 0]).any()
    run(task, tmp_path / "a", data=data)
    without = ~data.train.shares.any(axis=1)
    other = replace(data.train, labels=np.where(without, 3, data.train.labels))
    run(task, tmp_path / "b", data=replace(data, train=other))
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_new_head_predicts_the_training_mean(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    task = task_of(corpus, epochs=1, learning_rate=1e-9)
    trained(task, tmp_path)
    data = TrainingData.open(task)
    model = load_model(tmp_path)
    mean = np.nanmean(data.train.dimensions, axis=0)
    values = predict(model, data.store, data.train.ids, "cpu").dimensions
    scale = np.nanstd(data.train.dimensions, axis=0)
    assert np.abs(values.mean(axis=0) - mean).max() < scale.max()
    assert model.dimension_scale is not None
    torch.testing.assert_close(model.dimension_scale.centre, torch.from_numpy(mean))
    assert read_model_config(tmp_path)["spec"]["dimensions"] == list(NAMES)
    assert read_model_config(tmp_path)["training"]["tasks"]["valence"] == 1.0


def test_weights_of_tasks_weigh_the_losses(corpus: tuple[Path, Path]) -> None:
    task = task_of(corpus, dimension_loss="mse")
    data = TrainingData.open(task)
    by_weight = []
    for weight in (1.0, 3.0):
        heavier = task_of(corpus, weight, dimension_loss="mse")
        objective = Objective(heavier, data.train, 4)
        assert not objective.depends_on_batch
        by_weight.append(objective.dimension_weights)
    assert torch.equal(3 * by_weight[0], by_weight[1])
    assert Objective(task_of(corpus), data.train, 4).depends_on_batch


def distilled(
    task: TrainingTask,
    path: Path,
    values: np.ndarray,
    weight: float,
    logits: np.ndarray | None = None,
) -> TrainingTask:
    ids = TrainingData.open(task).train.ids
    classes = task.spec.num_classes
    write_soft_targets(
        path,
        ids,
        np.zeros((len(ids), classes)) if logits is None else logits,
        "t",
        np.full(len(ids), -1),
        classes=[f"c{i}" for i in range(classes)] if not classes else None or _classes(task),
        dimensions=values,
        dimension_names=task.spec.dimensions,
    )
    return replace(task, soft_targets=str(path), distillation=DistillationConfig(weight=weight))


def _classes(task: TrainingTask) -> tuple[str, ...]:
    return TrainingData.open(task).classes


def test_a_student_learns_the_values_of_its_teacher(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    """With all weight on the teacher, the student follows values that contradict the labels."""
    task = task_of(corpus, epochs=12, metric="loss")
    truth = np.nan_to_num(TrainingData.open(task).train.dimensions, nan=3.0)
    student = distilled(task, tmp_path / "targets.parquet", 6.0 - truth, weight=1.0)
    read = read_soft_targets(tmp_path / "targets.parquet")
    assert read.dimension_names == NAMES
    np.testing.assert_allclose(read.dimensions, 6.0 - truth, rtol=1e-6)
    ccc = losses(run(student, tmp_path / "student"), "valid_ccc_arousal")
    assert ccc[-1] < -0.2


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("loss", ["kd", "dkd", "dist", "two-mse"])
def test_a_teacher_teaches_what_the_manifest_knows(
    corpus: tuple[Path, Path], tmp_path: Path, loss: str, unlabelled: bool
) -> None:
    """A clip without a class, or a value, moves neither the control nor the student in it.

    With `unlabelled`, clips whose label is hidden still do: they have one in the manifest.
    """
    task = task_of(corpus, dimension_loss="mse")
    truth = TrainingData.open(task).train
    logits = np.random.default_rng(1).normal(size=truth.shares.shape)
    values = np.full(truth.dimensions.shape, 2.0)
    student = distilled(task, tmp_path / "t.parquet", values, 1.0, logits)
    settings = {"loss": loss, "weight": 1.0}
    student = replace(
        student,
        distillation=DistillationConfig.model_validate(settings),
        label_share=0.5 if unlabelled else 1.0,
        unlabelled=unlabelled,
    )
    data = TrainingData.open(student)
    objective = Objective(student, data.train, 4)
    reader = Prefetcher(data.store, torch.device("cpu"), None)
    classed, known = truth.shares.any(axis=1), np.isfinite(truth.dimensions)
    assert data.train.ids == truth.ids and not classed.all() and not known.all()
    assert len(data.train.labelled) < len(truth)

    def gradients(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        [batch] = reader.micro_batches(data.train, [rows])
        random = torch.Generator().manual_seed(3)
        logits = torch.randn(len(rows), 7, generator=random, requires_grad=True)
        outputs = torch.randn(len(rows), 2, generator=random, requires_grad=True)
        output = ModelOutput(logits, torch.zeros(len(rows), 4), outputs)
        losses = objective(output, batch, 0.0)
        losses.mean().backward()
        assert logits.grad is not None and outputs.grad is not None
        return logits.grad, outputs.grad, outputs.detach()

    of_logits, of_values, predicted = gradients(np.arange(len(truth)))
    moved = of_logits.abs().amax(dim=1).numpy() > 0
    np.testing.assert_array_equal(moved, classed)
    of_mean = 2 * (predicted.numpy() - 2) / known.sum(axis=0)
    np.testing.assert_allclose(of_values, np.where(known, of_mean, 0), rtol=1e-5)
    none, _, _ = gradients(np.flatnonzero(~classed))
    assert none.abs().max() == 0, "a batch without any class has a finite gradient"


def test_soft_targets_of_other_dimensions_are_refused(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    task = task_of(corpus)
    values = np.full((len(TrainingData.open(task).train), 2), 3.0)
    student = distilled(task, tmp_path / "t.parquet", values, weight=0.5)
    one = replace(student.spec, dimensions=("valence",))
    other = replace(student, spec=one, tasks={"classes": 1.0, "valence": 1.0})
    with pytest.raises(MultistillError, match="have the dimensions valence, arousal"):
        TrainingData.open(other)


def test_weights_are_of_the_tasks_of_the_model(corpus: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="its model predicts classes, valence, arousal"):
        replace(task_of(corpus), tasks={"classes": 1.0})
    assert TrainingTask.from_dict(task_of(corpus).to_dict()) == task_of(corpus)


def test_rows_without_a_class_are_drawn_like_the_mean_of_the_others() -> None:
    shares = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    drawn = sampling_weights(shares)
    assert drawn[3] == pytest.approx(drawn[:3].mean())
    assert drawn[:2].sum() == pytest.approx(drawn[2])
