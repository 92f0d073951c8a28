"""Checkpoints: written atomically, verified on reading; a damaged file costs one epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multistill.errors import MultistillError
from multistill.training.checkpoint import (
    Checkpoint,
    Progress,
    best_weights,
    differences,
    load_checkpoint,
    newest_epoch,
    save_checkpoint,
)


def save(state: Path, epoch: int, best: int) -> None:
    tensors = {"w": torch.full((64,), float(epoch))}
    progress = Progress(epoch=epoch, step=epoch, best_epoch=best, best=[0.5])
    save_checkpoint(state, Checkpoint(progress, tensors, {"w/step": torch.tensor(float(epoch))}))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for epoch in range(1, 5):
        save(tmp_path, epoch, best=min(epoch, 2))
    return tmp_path


def test_the_two_newest_epochs_and_the_best_are_kept(state):
    names = sorted(entry.name for entry in state.iterdir())
    assert names == ["best-000002", "epoch-000003", "epoch-000004"]
    tensors, progress = best_weights(state)
    assert progress.epoch == 4
    assert tensors["w"][0] == 2.0
    assert load_checkpoint(state, 4).optimizer["w/step"] == 4.0


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "modified", "missing"])
def test_the_previous_checkpoint_is_used_if_the_newest_is_damaged(state, file, damage):
    path = state / "epoch-000004" / file
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "modified":
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    else:
        path.unlink()
    epoch, problems = newest_epoch(state)
    assert epoch == 3
    assert len(problems) == 1
    assert "epoch-000004" in problems[0]
    with pytest.raises(MultistillError):
        load_checkpoint(state, 4)
    save(state, 4, best=2)  # training the epoch again replaces the damaged checkpoint
    assert newest_epoch(state) == (4, [])


def test_a_kill_during_writing_leaves_the_previous_checkpoint(state, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(state, 5, best=5)
    assert newest_epoch(state) == (4, [])


def test_damaged_best_weights_are_detected(state):
    (state / "best-000002" / "model.safetensors").write_bytes(b"")
    epoch, problems = newest_epoch(state)
    assert epoch == 0
    assert "best-000002" in problems[0]
    with pytest.raises(MultistillError, match="and run the job again"):
        best_weights(state)


def test_there_is_no_checkpoint_before_the_first_epoch(tmp_path):
    assert newest_epoch(tmp_path / "none") == (0, [])
    with pytest.raises(MultistillError, match="holds no checkpoint"):
        best_weights(tmp_path / "none")


def test_differences_name_nested_fields():
    old = {"model": {"width": 64, "layers": 1}, "seed": 1}
    assert differences(old, {"model": {"width": 32, "layers": 1}, "seed": 1}) == [
        "`model.width` was 64 and is 32"
    ]
    assert differences(old, old) == []
