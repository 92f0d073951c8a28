"""Students with a teacher: the limits of its weight, hints and CKA in the training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.training_corpus import (
    AUDIO_DIM,
    TEXT_DIM,
    losses,
    make_task,
    run,
    with_dropout,
    with_states,
    with_teacher,
)

from multistill.distillation.representations import Hint
from multistill.inference.predict import predict
from multistill.models.build import build
from multistill.training.checkpoint import best_weights, load_checkpoint
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask


def test_a_student_equals_its_control_only_at_weight_zero(corpus, tmp_path):
    control = with_dropout(make_task(corpus))
    control_reports = run(control, tmp_path / "control")
    path = tmp_path / "soft.parquet"
    unweighted = run(with_teacher(control, path, 0.0), tmp_path / "zero")
    assert losses(unweighted) == pytest.approx(losses(control_reports), abs=1e-6)
    distilled = run(with_teacher(control, path, 0.7), tmp_path / "distilled")
    assert losses(distilled) != pytest.approx(losses(control_reports), abs=1e-2)


def hint_loss(task: TrainingTask, state: Path, epoch: int) -> float:
    """Mean hint loss over the training rows under a checkpoint."""
    data = TrainingData.open(task)
    teacher = data.train.teacher_states
    assert teacher is not None
    checkpoint = load_checkpoint(state, epoch)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    model.load_state_dict(checkpoint.model)
    pooled = predict(model, data.store, data.train.ids, "cpu").pooled
    [projection] = [t for name, t in checkpoint.optimizer.items() if name.endswith("weight")]
    hint = Hint(model.pooled_dim, teacher.states.shape[1], teacher.num_spaces)
    hint.projection.weight.data = projection
    states, space = teacher.states[teacher.row_index], torch.from_numpy(teacher.space)
    return hint(torch.tensor(pooled), states, space).mean().item()


@pytest.mark.parametrize("folds", [1, 3])
def test_a_hint_moves_the_student_to_its_teachers_and_its_projection_is_resumed(
    corpus, tmp_path, folds
):
    task = with_dropout(make_task(corpus, epochs=6))
    student = with_states(task, tmp_path / "soft.parquet", folds, hint_weight=2.0)
    assert student.distillation is not None
    uninterrupted = run(student, tmp_path / "uninterrupted")
    interrupted = fit(student, state_dir=tmp_path / "resumed", device="cpu")
    for _ in range(2):
        next(interrupted)
    interrupted.close()
    first = hint_loss(student, tmp_path / "resumed", 1)
    assert hint_loss(student, tmp_path / "uninterrupted", 6) < 0.5 * first
    resumed = run(student, tmp_path / "resumed")
    assert losses(resumed) == losses(uninterrupted)[2:]
    last = [load_checkpoint(tmp_path / name, 6) for name in ("uninterrupted", "resumed")]
    assert last[0].optimizer.keys() == last[1].optimizer.keys()
    for kind in ("model", "optimizer"):
        a, b = (getattr(checkpoint, kind) for checkpoint in last)
        assert all(torch.equal(a[name], b[name]) for name in a)
    # The result has the parameters of the control: the projection is discarded.
    student_weights, _ = best_weights(tmp_path / "uninterrupted")
    run(task.with_train(epochs=1), tmp_path / "control")
    assert student_weights.keys() == best_weights(tmp_path / "control")[0].keys()


def test_cka_changes_the_training_and_follows_the_schedule(corpus, tmp_path):
    task = make_task(corpus, epochs=2)
    control = run(task, tmp_path / "control")
    path = tmp_path / "soft.parquet"
    unweighted = run(with_states(task, path, cka_weight=0.0), tmp_path / "0")
    assert losses(unweighted) == pytest.approx(losses(control), abs=1e-6)
    with_cka = run(with_states(task, path, cka_weight=1.0), tmp_path / "1")
    assert losses(with_cka)[0] > losses(control)[0] + 0.1
    assert losses(with_cka, "valid_loss") != losses(control, "valid_loss")
    rise = {"cka_weight": 1.0, "schedule": "rise", "schedule_share": 1.0}
    rising = run(with_states(task, path, **rise), tmp_path / "rise")
    assert losses(control)[0] < losses(rising)[0] < losses(with_cka)[0]
