"""A training that is asked to stop saves after the step, and goes on as if it never had."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_corpus import (
    ThreadGroup,
    losses,
    make_task,
    run,
    weights,
    with_dropout,
    with_states,
)
from torch import Tensor

from multistill.training.checkpoint import best_weights, newest_epoch, newest_steps
from multistill.training.loop import fit
from multistill.training.reports import EpochReport, TrainingInterrupted
from multistill.training.task import TrainingTask
from multistill.workspace import read_json


def after(steps: int) -> Callable[[], bool]:
    """Is true from the call of that number on, counted over both trainings of a test."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= steps


def until_interrupted(
    task: TrainingTask, state: Path, stop: Callable[[], bool]
) -> tuple[list[EpochReport], TrainingInterrupted]:
    """The epochs that ended before the interruption, and the interruption."""
    reports: list[EpochReport] = []
    with pytest.raises(TrainingInterrupted) as caught:
        for report in fit(task, state_dir=state, device="cpu", stop=stop):
            reports.append(report)
    return reports, caught.value


@pytest.mark.parametrize(
    ("stop_at", "train"),
    [
        (1, {}),  # before the first epoch ends
        (9, {"average_epochs": 1.5, "select_window": 2}),
        (13, {"oversample": True, "augmentation": {"mixup": 0.4}}),
        (16, {"accumulation": 2}),
    ],
)
def test_a_training_interrupted_within_an_epoch_equals_an_uninterrupted_one(
    corpus, tmp_path, stop_at, train
):
    task = with_dropout(make_task(corpus, epochs=4, batch_size=8, **train))
    uninterrupted = run(task, tmp_path / "uninterrupted")
    state = tmp_path / "interrupted"
    begun, caught = until_interrupted(task, state, after(stop_at))
    assert caught.epoch == len(begun) == newest_epoch(state)[0] < 4
    assert caught.steps == newest_steps(state, caught.epoch) > 0
    # Each later process does a step or two and is interrupted again.
    more, again = until_interrupted(task, state, after(1))
    assert (again.epoch, again.steps) > (caught.epoch, caught.steps)
    reports = [*begun, *more, *run(task, state)]
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    for name in ("train_loss", "valid_loss", "valid_macro_f1"):
        assert losses(reports, name) == losses(uninterrupted, name)
    assert torch.equal(weights(state), weights(tmp_path / "uninterrupted"))
    assert best_weights(state)[1].best == best_weights(tmp_path / "uninterrupted")[1].best
    assert not list(state.glob("step-*")), "the epoch has a checkpoint of its own"


def test_seconds_of_an_interrupted_epoch_count(corpus, tmp_path):
    task = make_task(corpus, epochs=1, batch_size=8)
    until_interrupted(task, tmp_path, after(2))
    [record] = tmp_path.glob("step-*/state.json")
    before = read_json(record)["progress"]["begun"]["seconds"]
    [report] = run(task, tmp_path)
    assert report.metrics["seconds"] > before > 0


def test_a_projection_and_a_damaged_step_are_continued_from_what_is_intact(corpus, tmp_path):
    """The step's checkpoint holds the projection of the hint; damaged, it costs its steps only."""
    task = with_dropout(make_task(corpus, "student", epochs=3, batch_size=8))
    task = with_states(task, tmp_path / "soft.parquet", folds=2, hint_weight=0.5)
    uninterrupted = run(task, tmp_path / "uninterrupted")
    for name, damaged in (("intact", False), ("damaged", True)):
        state = tmp_path / name
        until_interrupted(task, state, after(10))
        epoch = newest_epoch(state)[0]
        if damaged:
            [file] = state.glob("step-*/optimizer.safetensors")
            file.write_bytes(file.read_bytes()[:-1])
            assert newest_steps(state, epoch) == 0
        resumed = run(task, state)
        assert losses(resumed) == losses(uninterrupted)[epoch:]
        assert torch.equal(weights(state), weights(tmp_path / "uninterrupted"))


def test_ranks_stop_after_the_same_step_whichever_of_them_is_asked(corpus, tmp_path):
    task = make_task(corpus, epochs=3, batch_size=8)

    def both(state: Path, stops: list[Callable[[], bool]]) -> list[Any]:
        ranks, first_waits = ThreadGroup(2), threading.Event()
        ended: list[Any] = [None, None]

        def one(rank: int) -> None:
            group = ranks.process_group(rank)

            def all_reduce(tensor: Tensor) -> None:
                first_waits.set()
                group.all_reduce(tensor)

            reports = []
            try:
                for report in fit(
                    task,
                    group=replace(group, all_reduce=all_reduce),
                    state_dir=state,
                    device="cpu",
                    stop=stops[rank],
                ):
                    reports.append(report)
            except TrainingInterrupted as interrupted:
                ended[rank] = (interrupted.epoch, interrupted.steps)
            else:
                ended[rank] = losses(reports)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        threads[0].start()
        assert first_waits.wait(60)  # its weights are drawn: the generator is the process's
        threads[1].start()
        for thread in threads:
            thread.join(120)
        return ended

    def never() -> bool:
        return False

    uninterrupted = both(tmp_path / "uninterrupted", [never, never])
    first, second = both(tmp_path / "state", [never, after(7)])
    assert first == second is not None
    resumed = both(tmp_path / "state", [never, never])
    epochs = len(resumed[0])
    assert resumed[0] == resumed[1] == uninterrupted[0][-epochs:]
    assert torch.equal(weights(tmp_path / "state"), weights(tmp_path / "uninterrupted"))
