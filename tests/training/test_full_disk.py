"""A disk that gets full while a model is trained: what it costs, and that it goes on after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from helpers.small_disk import filled, small_disk
from helpers.training_corpus import make_task

from multistill.training import worker
from multistill.training.checkpoint import newest_epoch
from multistill.training.distributed import ProcessGroup
from multistill.training.export import state_folder


def test_a_training_whose_disk_gets_full_goes_on_to_the_same_weights(corpus, tmp_path: Path):
    """Full while the second of three epochs is written, and again while the model is exported."""
    task = make_task(corpus, epochs=3)

    def train(out: Path, full_after: str | None = None) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        ballast = filled(out)

        def put(event: dict[str, Any]) -> None:
            sent.append(event)
            if full_after == f"{event['kind']} {event.get('epoch')}":
                ballast.__enter__()

        events = SimpleNamespace(put=put)
        folder = task.folder(out)
        worker._train(task, folder, ProcessGroup(), torch.device("cpu"), events, lambda: False)
        if full_after is not None:
            ballast.__exit__(None, None, None)
        return sent

    train(tmp_path / "undisturbed")
    with small_disk(tmp_path / "disk", 4096) as disk:
        folder = task.folder(disk)
        for full_after, epochs in (("epoch 1", 1), ("epoch 3", 3)):
            failed = train(disk, full_after)[-1]
            assert (failed["kind"], failed["full_disk"]) == ("failed", True)
            assert f"the disk of {folder}" in failed["reason"]
            assert "finished epochs are kept" in failed["reason"]
            assert newest_epoch(state_folder(folder)) == (epochs, [])
            left = [path.name for path in folder.rglob(".*")]
            assert not left, "a half-written file"
        resumed = train(disk)
        assert [event["kind"] for event in resumed] == ["started", "finished"]
        weights = (folder / "model.safetensors").read_bytes()
    again = task.folder(tmp_path / "undisturbed") / "model.safetensors"
    assert weights == again.read_bytes()
