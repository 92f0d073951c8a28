"""A share of the labels: which clips keep theirs, what the others still give, equal budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_corpus import make_task, run, with_teacher
from hypothesis import given
from hypothesis import strategies as st

from multistill.models.base import ModelOutput
from multistill.training.data import TrainingData
from multistill.training.epochs import EpochPlanner
from multistill.training.labelled import draw_labelled
from multistill.training.objective import Objective
from multistill.training.task import TrainingTask

LABELS = st.lists(st.integers(-1, 6), min_size=1, max_size=200)
SHARES = st.floats(0.001, 1.0)


@given(LABELS, SHARES, SHARES, st.integers(0, 2**31 - 1))
def test_a_draw_has_its_share_of_every_class_and_is_nested(labels, one, other, seed):
    small, large = sorted((one, other))
    array = np.asarray(labels, dtype=np.int64)
    rows = draw_labelled(array, small, seed)
    assert rows.tolist() == draw_labelled(array, small, seed).tolist(), "one draw per seed"
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(rows) <= set(draw_labelled(array, large, seed))
    for label in set(labels):
        kept, count = int((array[rows] == label).sum()), labels.count(label)
        assert 1 <= kept <= count
        assert abs(kept - small * count) <= 0.5 or kept == 1
    assert len(draw_labelled(array, 1.0, seed)) == len(labels)


def test_another_seed_draws_other_labels():
    labels = np.repeat(np.arange(4), 50)
    assert len({tuple(draw_labelled(labels, 0.1, seed)) for seed in range(20)}) == 20


def labelled_task(corpus: Any, share: float, **more: Any) -> TrainingTask:
    return replace(make_task(corpus), label_share=share, **more)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_student_and_control_have_the_same_labels_and_all_rows_are_validated(
    corpus, tmp_path, share
):
    everything = TrainingData.open(make_task(corpus))
    student = replace(
        with_teacher(make_task(corpus), tmp_path / "t.parquet", 0.5), label_share=share
    )
    opened = [TrainingData.open(each) for each in (student, student.control("control"))]
    assert opened[0].train.ids == opened[1].train.ids
    assert 0 < len(opened[0].train) < len(everything.train)
    assert opened[0].valid.ids == everything.valid.ids
    rows = [everything.train.ids.index(name) for name in opened[0].train.ids]
    np.testing.assert_array_equal(opened[0].train.shares, everything.train.shares[rows])
    for data in opened:
        assert data.part == everything.train.ids
        scaled, all_scaled = data.statistics(student), everything.statistics(student)
        assert repr(scaled) == repr(all_scaled), "states are scaled by all clips: no label needed"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 1.0])
def test_few_labels_have_about_the_steps_of_all(corpus, tmp_path, share):
    task = labelled_task(corpus, share)
    full = TrainingData.open(make_task(corpus))
    few = TrainingData.open(task)
    planner = EpochPlanner(task, few)
    assert planner.steps >= EpochPlanner(make_task(corpus), full).steps
    assert few.passes * len(few.train) == pytest.approx(len(full.train), rel=0.35)
    epoch = planner.plan(1)
    assert len(epoch.batches) == planner.steps
    counts = np.bincount(epoch.rows[np.concatenate(epoch.batches)])
    assert set(counts) == {few.passes}, "every clip as often as every other"
    assert max(map(len, epoch.batches)) <= task.train.batch_size


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
@pytest.mark.parametrize("label_loss", ["soft-cross-entropy", "cross-entropy", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clips_without_label_give_the_teachers_loss_alone(
    corpus, tmp_path, loss, label_loss, smoothing
):
    """The mean over all rows: of the teacher's loss, plus the label loss of labelled rows."""
    settings = {"loss": label_loss, "label_smoothing": smoothing, "class_weights": "effective"}
    task = with_teacher(make_task(corpus, **settings), tmp_path / "t.parquet", 0.3)
    distillation = task.distillation.model_copy(update={"loss": loss, "dkd_alpha": 0.0})
    task = replace(task, distillation=distillation, label_share=0.25, unlabelled=True)
    data = TrainingData.open(task)
    labelled = data.train.labelled
    assert len(data.train) == len(data.part) and 0 < len(labelled) < len(data.train)
    logits = torch.randn(len(data.train), 7, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()

    def mean_loss(each: TrainingTask, rows: np.ndarray, weight: float) -> torch.Tensor:
        weighted = each.distillation and each.distillation.model_copy(update={"weight": weight})
        opened = TrainingData.open(each)
        objective = Objective(replace(each, distillation=weighted), opened.train, 16)
        batch = _rows_of(opened, rows)
        return objective(
            ModelOutput(logits[torch.from_numpy(batch[0])], None), batch[1], 0.0
        ).mean()

    every = np.arange(len(data.train))
    got = mean_loss(task, every, 0.3)
    control = replace(task.control("c"))
    few = TrainingData.open(control)
    assert [data.train.ids[row] for row in labelled] == few.train.ids
    objective = Objective(control, few.train, 16)
    batch = _rows_of(few, np.arange(len(few.train)))[1]
    on_labels = objective(ModelOutput(logits[torch.from_numpy(labelled)], None), batch, 0.0).mean()
    of_teacher = mean_loss(task, every, 1.0)
    assert got.item() == pytest.approx((0.3 * of_teacher + 0.7 * on_labels).item(), rel=1e-5)
    gradient = torch.autograd.grad(mean_loss(task, every, 0.0), logits)[0]
    hidden = np.setdiff1d(every, labelled)
    assert gradient[hidden].abs().max() == 0, "no label reaches the loss"
    assert gradient[labelled].abs().sum(dim=1).min() > 0


def _rows_of(data: TrainingData, rows: np.ndarray) -> Any:
    from multistill.training.prefetch import Prefetcher

    prefetcher = Prefetcher(data.store, torch.device("cpu"), None)
    [batch] = prefetcher.micro_batches(data.train, [rows])
    return rows, batch


def test_a_student_learns_from_clips_without_label(corpus, tmp_path):
    task = with_teacher(make_task(corpus, epochs=1), tmp_path / "t.parquet", 0.5)
    ends = [
        run(replace(task, label_share=0.2, unlabelled=unlabelled), tmp_path / str(unlabelled))
        for unlabelled in (False, True)
    ]
    assert len(ends[0]) == len(ends[1]) == 1
    assert ends[0][0].metrics["valid_loss"] != ends[1][0].metrics["valid_loss"]
