"""Files of a teacher's outputs: round trip, and errors for missing and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from multistill.distillation.losses import teacher_loss
from multistill.distillation.targets import (
    read_soft_targets,
    read_states,
    write_soft_targets,
    write_states,
)
from multistill.errors import MultistillError
from multistill.models.files import Output
from multistill.models.sequences import RaggedStates

IDS = [f"u{row}" for row in range(9)]


def test_soft_targets_survive_a_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(9, 7)).astype(np.float32)
    fold = np.array([0, 1, 2, 0, 1, 2, 0, 1, -1])
    path = tmp_path / "a" / "soft_targets.parquet"
    write_soft_targets(path, IDS, logits, "teacher", fold)
    targets = read_soft_targets(path)
    assert targets.ids == IDS
    assert targets.teacher == "teacher"
    np.testing.assert_array_equal(targets.outputs, logits)
    np.testing.assert_array_equal(targets.fold, fold)
    assert pq.read_schema(path).names == ["utterance_id", "outputs", "teacher", "fold"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    write_soft_targets(path, [], np.zeros((0, 7)), "nobody", [])
    assert read_soft_targets(path).outputs.shape == (0, 7)


SHARES = np.random.default_rng(3).dirichlet(np.full(7, 0.5), 9)


@pytest.mark.parametrize("kind", ["logits", "shares"])
@pytest.mark.parametrize("loss", ["kd", "dkd", "dist", "two-mse"])
def test_the_loss_of_a_student_with_the_teachers_distribution_is_zero(
    tmp_path: Path, loss: str, kind: Output
) -> None:
    """Whatever the teacher puts out and the loss compares: a copy of the teacher is its optimum."""
    shares = np.maximum(SHARES, 1e-4) / np.maximum(SHARES, 1e-4).sum(axis=1, keepdims=True)
    outputs = shares if kind == "shares" else np.log(shares) + 3.0
    path = tmp_path / "soft_targets.parquet"
    write_soft_targets(path, IDS, outputs, "t", np.zeros(9), kind)
    targets = read_soft_targets(path)
    np.testing.assert_allclose(targets.distributions, shares, atol=1e-6)
    copy = shares if loss == "two-mse" else np.log(shares) - 1.0
    losses = teacher_loss(
        torch.tensor(copy, dtype=torch.float32),
        torch.from_numpy(targets.for_loss(loss)),
        torch.from_numpy(shares.argmax(axis=1)),
        loss=loss,
        temperature=2.0,
    )
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)


def test_outputs_of_the_kind_that_the_loss_reads_are_not_changed(tmp_path: Path) -> None:
    """Raw outputs of a squared-error teacher, below zero too, are what was published."""
    raw = np.random.default_rng(1).normal(size=(9, 7)).astype(np.float32)
    for kind, loss in (("shares", "two-mse"), ("logits", "kd")):
        path = tmp_path / f"{kind}.parquet"
        write_soft_targets(path, IDS, raw, "t", np.zeros(9), kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_soft_targets(path).for_loss(loss), raw)


def test_missing_damaged_and_incomplete_soft_targets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    with pytest.raises(MultistillError, match="is missing; run the job again"):
        read_soft_targets(path)
    write_soft_targets(path, IDS, np.zeros((9, 7)), "t", np.zeros(9))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MultistillError, match="is damaged"):
        read_soft_targets(path)
    pq.write_table(pq.read_table(_rewritten(path)).drop_columns(["fold"]), path)
    with pytest.raises(MultistillError, match="column fold is missing"):
        read_soft_targets(path)
    write_soft_targets(path, IDS, np.zeros((9, 7)), "t", np.zeros(9))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(MultistillError, match="logits or shares"):
        read_soft_targets(path)
    with pytest.raises(ValueError, match=r"shape \(9, 7\), not \(9, 6\)"):
        write_soft_targets(path, IDS, np.zeros((9, 6)), "t", np.zeros(9))


def test_pooled_states_survive_a_round_trip_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    with pytest.raises(MultistillError, match=r"states\.safetensors is missing.*representations"):
        read_states(path)
    pooled = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    sequence = RaggedStates(np.arange(10, dtype=np.float16).reshape(5, 2), np.array([3, 0, 2]))
    write_states(path, [5, 0, 8], [2, 0, 2], pooled, {"text": sequence})
    found = read_states(path)
    assert (found.rows.tolist(), found.teacher.tolist()) == ([5, 0, 8], [2, 0, 2])
    np.testing.assert_array_equal(found.pooled.numpy(), pooled)
    [(name, (states, lengths))] = found.sequences.items()
    assert name == "text" and lengths.tolist() == [3, 0, 2]
    np.testing.assert_array_equal(states.numpy(), sequence.states)
    assert [file.name for file in tmp_path.iterdir()] == ["states.safetensors"]
    file = tmp_path / "states.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(MultistillError, match="damaged"):
        read_states(path)


def _rewritten(path: Path) -> Path:
    write_soft_targets(path, IDS, np.zeros((9, 7)), "t", np.zeros(9))
    return path
