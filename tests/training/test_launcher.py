"""Training through real Ray Train: same losses, live records, killed workers, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import PYTHONPATH
from helpers.recording_logger import RecordingLogger
from helpers.training_corpus import make_corpus, make_task, with_dropout, with_states

from multistill.errors import MultistillError
from multistill.models.files import load_model
from multistill.training.capacity import lanes, require
from multistill.training.checkpoint import best_weights, newest_epoch
from multistill.training.data import TrainingData
from multistill.training.export import export, is_finished, state_folder
from multistill.training.loop import fit
from multistill.training.task import TrainingTask
from multistill.workspace import read_json


def worker_pids(logger: RecordingLogger) -> list[int]:
    """Process ids of a model's workers of rank 0, one per start of its worker group."""
    return [int(tags["worker"].split(":")[1]) for tags in logger.tag_calls]


def kill_rank_0_after_epoch_3(logger: RecordingLogger, method: str, recorded: Any) -> None:
    """Kill the first worker of rank 0; the worker that replaces it is left alone."""
    if method == "metrics" and recorded[0] == 3 and len(logger.tag_calls) == 1:
        os.kill(worker_pids(logger)[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.ray
def test_killed_four_worker_training_equals_one_worker(corpus, tmp_path, ray_session):
    """Four ranks over gloo, rank 0 killed with SIGKILL in mid-training, against one process."""
    from multistill.training.launcher import train

    task = make_task(corpus, "teacher", epochs=6, batch_size=8, workers=4, accumulation=2)
    logger = RecordingLogger(child_kind="model", on_event=kill_rank_0_after_epoch_3)
    [result] = train([task], tmp_path / "out", logger)
    folder = tmp_path / "out" / "teacher"

    alone = list(fit(task, state_dir=tmp_path / "alone", device="cpu"))
    history = read_json(folder / "history.json")["epochs"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 7))
    for name in ("train_loss", "valid_loss", "valid_macro_f1"):
        found = [epoch[name] for epoch in history]
        assert found == pytest.approx([report.metrics[name] for report in alone], abs=1e-3)

    [record] = logger.children.values()
    assert record.key == record.name == "teacher"
    assert len(set(worker_pids(record))) == 2  # two processes worked on it
    assert any("continuing after epoch" in line for line in record.messages)
    assert sorted(set(record.steps)) == list(range(1, 7))
    assert len(record.steps) <= 7  # at most the epoch in progress was trained twice
    assert record.status == "FINISHED"
    assert result["record_id"] == "record-teacher"
    assert result["folder"] == str(folder)
    model = load_model(folder, {"audio_dim": 12, "text_dim": 8})
    assert model.spec == task.spec
    assert {entry.name for entry in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "history.json",
    }

    again = RecordingLogger(child_kind="model")
    assert train([task], tmp_path / "out", again)[0]["best_epoch"] == result["best_epoch"]
    assert not any(child.steps for child in again.children.values())  # nothing was trained again


def compare(folder: Path, task: TrainingTask, alone: Path, tolerance: float) -> None:
    """Losses of every epoch and the final weights are those of one uninterrupted process."""
    whole = list(fit(task, state_dir=alone, device="cpu"))
    found = read_json(folder / "history.json")["epochs"]
    assert [epoch["train_loss"] for epoch in found] == pytest.approx(
        [report.metrics["train_loss"] for report in whole], abs=tolerance
    )
    weights, _ = best_weights(alone)
    ours = load_model(folder).state_dict()
    for name, tensor in weights.items():
        if name.endswith("key_value.bias"):
            # Softmax does not see a shift of all keys: the key bias has no gradient but
            # rounding, of which Adam makes steps of full size. Another number of threads
            # rounds otherwise.
            shift, value = tensor.chunk(2)
            assert shift.abs().max() < 0.1
            torch.testing.assert_close(ours[name].chunk(2)[1], value, atol=tolerance, rtol=0)
        else:
            torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=0)


DRIVER = """
import json
import sys
from pathlib import Path
import ray
from multistill.training.launcher import train
from multistill.training.task import TrainingTask
from helpers.recording_logger import RecordingLogger

def print_worker(logger, method, recorded):
    if method == "tags":
        print(recorded["worker"].split(":")[1], flush=True)

ray.init(address=sys.argv[1], log_to_driver=False)
task = TrainingTask.from_dict(json.loads(Path(sys.argv[2]).read_text()))
train([task], Path(sys.argv[3]), RecordingLogger(on_event=print_worker))
"""


@pytest.mark.ray
def test_workers_go_with_a_killed_driver_and_the_rest_equals_one_run(corpus, tmp_path, ray_session):
    """SIGKILL to the driver in mid-epoch; a hint beside, whose projection has to survive too."""
    import ray

    task = with_dropout(make_task(corpus, "student", epochs=24, batch_size=8))
    task = with_states(task, tmp_path / "soft.parquet", folds=2, hint_weight=0.5)
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    folder = tmp_path / "out" / "student"
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, tmp_path / "task.json", folder.parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    while newest_epoch(state_folder(folder))[0] < 3 and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    given_up = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < given_up:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists(), "an orphan would write beside the next run"
    reached, problems = newest_epoch(state_folder(folder))
    assert 3 <= reached < 24
    assert problems == []

    data = TrainingData.open(task)
    rest = list(fit(task, state_dir=state_folder(folder), device="cpu", data=data))
    assert rest[0].epoch == reached + 1
    export(task, data, state_folder(folder), folder)
    compare(folder, task, tmp_path / "alone", 1e-5)


NODES = """
import json
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from multistill.training.launcher import train
from multistill.training.task import TrainingTask
from helpers.recording_logger import RecordingLogger

quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
         "health_check_failure_threshold": 4}
head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": quick})
nodes = [cluster.add_node(wait=False, num_cpus=2) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)

def remove_first_node(logger, method, recorded):
    if method == "metrics" and recorded[0] == 2 and len(nodes) == 2:
        pid = logger.tag_calls[0]["worker"].split(":")[1]
        status = Path(f"/proc/{pid}/stat").read_text()
        raylet = int(status.rpartition(")")[2].split()[1])  # the worker's parent
        [lost] = [node for node in nodes if raylet in pids(node)]
        nodes.remove(lost)
        cluster.remove_node(lost, allow_graceful=False)

def pids(node):
    return [entry.process.pid for entry in node.all_processes["raylet"]]

logger = RecordingLogger(on_event=remove_first_node)
task = TrainingTask.from_dict(json.loads(Path(sys.argv[1]).read_text()))
train([task], Path(sys.argv[2]), logger)
[record] = logger.children.values()
workers = [tags["worker"] for tags in record.tag_calls]
assert len(nodes) == 1 and len(set(workers)) == 2, workers
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
def test_two_workers_whose_node_dies_go_on_on_another_node(corpus, tmp_path):
    """A node of a cluster of three removed in mid-training, without leave, against one process."""
    task = make_task(corpus, "teacher", epochs=30, batch_size=8, workers=2)
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    out = tmp_path / "out"
    driver = subprocess.Popen(
        [sys.executable, "-c", NODES, tmp_path / "task.json", out],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    try:
        assert driver.wait(timeout=150) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)  # what a failed run left of its cluster
    compare(out / "teacher", task, tmp_path / "alone", 1e-3)


@pytest.mark.ray
def test_tasks_share_a_group_and_one_bad_task_costs_no_other(tmp_path, ray_session):
    """Three tasks on two lanes; one has a NaN among its rows and is told from the others."""
    from multistill.training.launcher import train

    good = make_corpus(tmp_path / "good")
    bad = make_corpus(tmp_path / "bad", broken=21)
    tasks = [
        with_dropout(make_task(good, "one", epochs=2)),
        make_task(bad, "bad", epochs=2),
        make_task(good, "three", epochs=2),
    ]
    logger = RecordingLogger(child_kind="model")
    started = time.monotonic()
    with pytest.raises(MultistillError, match=r"utt-021.*not-finite\.json"):
        train(tasks, tmp_path / "out", logger)
    print("seconds", time.monotonic() - started)
    assert is_finished(tmp_path / "out" / "one")
    assert is_finished(tmp_path / "out" / "three")
    assert not is_finished(tmp_path / "out" / "bad")
    status = {name: child.status for name, child in logger.children.items()}
    assert status == {"one": "FINISHED", "bad": "FAILED", "three": "FINISHED"}
    assert all(child.key == child.name for child in logger.children.values())
    # A restart would meet the bad row a second time.
    assert len(logger.children["bad"].tag_calls) == 1
    alone = list(fit(tasks[0], state_dir=tmp_path / "alone", device="cpu"))
    found = read_json(tmp_path / "out" / "one" / "history.json")["epochs"][-1]["train_loss"]
    assert found == pytest.approx(alone[-1].metrics["train_loss"], abs=1e-6)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"gpus_per_worker": 1}, "1 CPU and 1 GPU each, .* room for 0: there is too little GPU"),
        ({"cpus_per_worker": 64}, "64 CPU each, .* has room for 0: there is too little CPU"),
        ({"workers": 9}, "9 workers with 1 CPU each, .* has room for 4: there is too little CPU"),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_in_seconds(
    corpus, tmp_path, ray_session, wish, sentence
):
    from multistill.training.launcher import train

    started = time.monotonic()
    with pytest.raises(MultistillError, match=sentence):
        train([make_task(corpus, **wish)], tmp_path)
    assert time.monotonic() - started < 10


def test_what_no_node_can_hold_is_refused():
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 16.0}]
    with pytest.raises(MultistillError, match="too little GPU"):
        require("x", 2, {"CPU": 1.0, "GPU": 1.0}, nodes)
    require("x", 1, {"CPU": 1.0, "GPU": 1.0}, nodes)


def test_lanes_are_what_is_free_and_never_more_than_tasks():
    nodes = [{"CPU": 8.0}] * 2
    need = {"CPU": 1.0}
    assert lanes(20, 2, need, nodes, {"CPU": 16.0}) == 8
    assert lanes(3, 2, need, nodes, {"CPU": 16.0}) == 3
    assert lanes(20, 2, need, nodes, {"CPU": 5.0}) == 2
    assert lanes(20, 4, need, nodes, {"CPU": 1.0}) == 1
