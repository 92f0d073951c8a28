"""Nodes that are announced to go, go, die and join: the results are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import PYTHONPATH, TESTS
from helpers.training_corpus import (
    losses,
    make_corpus,
    make_task,
    run,
    with_dropout,
    with_teacher,
)

from multistill.models.files import load_model
from multistill.training.checkpoint import best_weights
from multistill.training.task import TrainingTask
from multistill.workspace import read_json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Disturbed:
    """What `helpers.lost_nodes` wrote, its tasks and its folder."""

    task: TrainingTask
    searched: TrainingTask
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("lost")
    corpus = make_corpus(folder / "corpus")
    task = with_dropout(make_task(corpus, epochs=40, batch_size=2, average_epochs=2.0))
    base = with_dropout(make_task(corpus, "student", epochs=40, batch_size=2))
    searched = with_teacher(base, folder / "soft.parquet", 0.5)
    for name, each in (("task", task), ("searched", searched)):
        (folder / f"{name}.json").write_text(json.dumps(each.to_dict()))
    arguments = [folder / "task.json", folder / "searched.json", folder]
    log = folder / "log"
    with log.open("wb") as stream:
        driver = subprocess.Popen(
            [sys.executable, TESTS / "helpers" / "lost_nodes.py", *arguments],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stdout=stream,
            stderr=stream,
        )
    try:
        status = driver.wait(timeout=800)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)  # the rest of the cluster after a failed run
    assert status == 0, log.read_text()[-9000:]
    return Disturbed(task, searched, folder, read_json(folder / "result.json"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers have: equal sums need equal threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_preempted_training_moves_on_within_its_epoch(disturbed: Disturbed) -> None:
    """SIGTERM to the driver, then a drained node: each costs no step that was saved."""
    told = disturbed.result["training"]
    assert any("saved after epoch" in line and "and step" in line for line in told["interrupted"])
    assert any("resuming after" in line and "and step" in line for line in told["moved"])
    assert any("a node is about to go" in line for line in told["moved"])
    assert told["workers"] == 2, "the second run had one worker on each of two nodes"


def test_a_preempted_training_gives_the_weights_of_an_undisturbed_one(
    disturbed: Disturbed, one_thread: None, tmp_path: Path
) -> None:
    reports = run(disturbed.task, tmp_path)
    folder = disturbed.folder / "training" / disturbed.task.name
    history = read_json(folder / "history.json")["epochs"]
    assert [epoch["train_loss"] for epoch in history] == losses(reports)
    expected, _ = best_weights(tmp_path)
    model = load_model(folder).state_dict()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())


def test_trials_of_a_preempted_and_of_a_dead_node_go_on_where_they_were(
    disturbed: Disturbed, one_thread: None, tmp_path: Path
) -> None:
    """The only node of a search goes twice, and another one joins: no epoch differs."""
    told = disturbed.result["search"]
    assert told["counts"] == {"complete": 2, "stopped": 0, "failed": 0, "running": 0}
    first, second = (line for line in told["messages"] if "it continues from its last" in line)
    assert first.startswith("trial 0: its node is about to go away")
    assert second.startswith("trial 1: its process")
    for width, rows in told["losses"].items():
        spec = replace(disturbed.searched.spec, width=int(width))
        expected = losses(run(replace(disturbed.searched, spec=spec), tmp_path / width))
        assert [loss for _, loss in rows] == [expected[step - 1] for step, _ in rows]
        assert rows[-1][0] == len(expected)
