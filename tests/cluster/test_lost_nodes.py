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
from helpers.features_killed import assert_complete, write_manifest
from helpers.paths import PYTHONPATH, TESTS
from helpers.training_corpus import (
    assert_equals_single_process,
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

EPOCHS = 24
"""Long enough that the training goes on while a node is announced to go, which takes a second."""


@dataclass(frozen=True)
class Disturbed:
    """What `helpers.lost_nodes` wrote, the tasks of its trainings and its folder."""

    tasks: dict[str, TrainingTask]
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """One cluster for all: its start and the imports of its processes take longer than the work."""
    folder = tmp_path_factory.mktemp("lost")
    write_manifest(folder)
    corpus = make_corpus(folder / "corpus")
    student = with_dropout(make_task(corpus, "student", epochs=EPOCHS, batch_size=2))
    averaged = make_task(corpus, epochs=EPOCHS, batch_size=2, average_epochs=2.0)
    tasks = {
        "two workers": make_task(corpus, "teacher", epochs=30, batch_size=8, workers=2),
        "training": with_dropout(averaged),
        "search": with_teacher(student, folder / "soft.parquet", 0.5),
    }
    for name, task in tasks.items():
        (folder / f"{name}.json").write_text(json.dumps(task.to_dict()))
    log = folder / "log"
    with log.open("wb") as stream:
        driver = subprocess.Popen(
            [sys.executable, TESTS / "helpers" / "lost_nodes.py", folder],
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
    return Disturbed(tasks, folder, read_json(folder / "result.json"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers have: equal sums need equal threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_actor_and_a_killed_node_cost_encoding_nothing_but_time(
    disturbed: Disturbed,
) -> None:
    assert disturbed.result["encoding"] == ["actor", "node"]
    assert_complete(disturbed.folder / "store")


def test_training_resumes_on_another_node_when_a_node_dies(
    disturbed: Disturbed, tmp_path: Path
) -> None:
    """The node of one of two workers is removed abruptly."""
    starts = disturbed.result["two workers"]
    assert len(starts) == len(set(starts)) == 2
    folder = disturbed.folder / "two workers" / "teacher"
    assert_equals_single_process(folder, disturbed.tasks["two workers"], tmp_path, 1e-3)


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
    reports = run(disturbed.tasks["training"], tmp_path)
    folder = disturbed.folder / "training" / disturbed.tasks["training"].name
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
    task = disturbed.tasks["search"]
    for width, rows in told["losses"].items():
        spec = replace(task.spec, width=int(width))
        expected = losses(run(replace(task, spec=spec), tmp_path / width))
        assert [loss for _, loss in rows] == [expected[step - 1] for step, _ in rows]
        assert rows[-1][0] == len(expected)
