"""Several trainings at the same time: how far they are, which run, and the time that is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK

from multistill.training.events import EventListener
from multistill.training.progress import TrainingProgress


def test_epochs_are_counted_together_and_the_rest_is_estimated_at_their_pace() -> None:
    now = 100.0
    progress = TrainingProgress({"a": 10, "b": 10, "c": 20}, lambda: now)
    assert (progress.done, progress.total, progress.seconds_left) == (0, 40, None)
    progress.started("a", 4)  # it goes on after four epochs of an earlier run
    progress.started("b", 0)
    assert (progress.done, progress.running) == (4, "a 4/10, b 0/10")
    now = 110.0
    for name, epoch in (("a", 5), ("b", 1), ("b", 2), ("a", 6)):
        progress.reached(name, epoch)
    assert (progress.done, progress.seconds_left) == (8, 10 / 4 * 32)
    progress.ended("b")  # its patience ran out
    assert (progress.done, progress.running) == (16, "a 6/10")
    assert progress.seconds_left == 10 / 4 * 24
    for epoch in range(7, 11):
        progress.reached("a", epoch)
    assert progress.running == "", "it exports its model"
    progress.started("c", 0)
    progress.reached("c", 20)
    assert (progress.done, progress.seconds_left) == (40, 0)


def epoch(name: str, number: int) -> dict[str, Any]:
    metrics = {"train_loss": 1.0, "valid_macro_f1": 0.5}
    return {"task": name, "kind": "epoch", "epoch": number, "metrics": metrics}


def test_one_training_shows_its_own_epochs_and_several_show_theirs_together(
    tmp_path: Path,
) -> None:
    logger = RecordingLogger()
    EventListener([TASK], tmp_path, logger).handle(epoch("student", 3))
    [alone] = logger.children["student"].progress_calls
    assert (alone.done, alone.total) == (3, 9) and not logger.progress_calls
    logger = RecordingLogger()
    listener = EventListener([TASK, replace(TASK, name="other")], tmp_path, logger)
    for event in (epoch("student", 1), epoch("other", 1), epoch("other", 2)):
        listener.handle(event)
    assert [(call.done, call.total) for call in logger.progress_calls] == [
        (1, 18),
        (2, 18),
        (3, 18),
    ]
    assert logger.progress_calls[-1].running == "student 1/9, other 2/9"
    assert not logger.children["other"].progress_calls
