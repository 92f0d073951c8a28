"""Training with real Ray Train: equal losses, live records, killed workers, refused requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import PYTHONPATH
from helpers.recording_logger import RecordingLogger
from helpers.training_corpus import (
    assert_equals_single_process,
    make_corpus,
    make_task,
    with_dropout,
    with_states,
)

from multistill.errors import MultistillError
from multistill.models.files import load_model
from multistill.training.checkpoint import newest_epoch
from multistill.training.data import TrainingData
from multistill.training.export import export, is_finished, state_folder
from multistill.training.loop import fit
from multistill.workspace import read_json


def worker_pids(logger: RecordingLogger) -> list[int]:
    """Process ids of a model's workers of rank 0, one per start of its worker group."""
    return [int(tags["worker"].split(":")[1]) for tags in logger.tag_calls]


def kill_rank_0_after_epoch_3(logger: RecordingLogger, method: str, recorded: Any) -> None:
    """Kill the first worker of rank 0; the worker that replaces it is left alone."""
    if method == "metrics" and recorded[0] == 3 and len(logger.tag_calls) == 1:
        os.kill(worker_pids(logger)[0], signal.SIGKILL)


@pytest.mark.ray
def test_training_with_four_workers_and_a_killed_one_equals_a_single_process(
    corpus, tmp_path, ray_session
):
    """Four gloo ranks; rank 0 is killed with SIGKILL during the training."""
    from multistill.training.launcher import train

    task = make_task(corpus, "teacher", epochs=6, batch_size=8, workers=4, accumulation=2)
    logger = RecordingLogger(child_kind="model", on_event=kill_rank_0_after_epoch_3)
    [result] = train([task], tmp_path / "out", logger)
    folder = tmp_path / "out" / "teacher"

    single = list(fit(task, state_dir=tmp_path / "single", device="cpu"))
    history = read_json(folder / "history.json")["epochs"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 7))
    for name in ("train_loss", "valid_loss", "valid_macro_f1"):
        values = [epoch[name] for epoch in history]
        assert values == pytest.approx([report.metrics[name] for report in single], abs=1e-3)

    [record] = logger.children.values()
    assert record.key == record.name == "teacher"
    assert len(set(worker_pids(record))) == 2  # two processes worked on it
    assert any("resuming after epoch" in line for line in record.messages)
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


DRIVER_SCRIPT = """
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
def test_workers_exit_with_a_killed_driver_and_resuming_equals_one_run(
    corpus, tmp_path, ray_session
):
    """SIGKILL to the driver during an epoch; with a hint, whose projection has to be resumed."""
    import ray

    task = with_dropout(make_task(corpus, "student", epochs=24, batch_size=8))
    task = with_states(task, tmp_path / "soft.parquet", folds=2, hint_weight=0.5)
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    folder = tmp_path / "out" / "student"
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER_SCRIPT, address, tmp_path / "task.json", folder.parent],
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
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists(), "an orphan would write to the next run's folder"
    reached, problems = newest_epoch(state_folder(folder))
    assert 3 <= reached < 24
    assert problems == []

    data = TrainingData.open(task)
    resumed = list(fit(task, state_dir=state_folder(folder), device="cpu", data=data))
    assert resumed[0].epoch == reached + 1
    export(task, data, state_folder(folder), folder)
    assert_equals_single_process(folder, task, tmp_path / "single", 1e-5)


@pytest.mark.ray
def test_a_task_with_bad_data_does_not_affect_the_others_of_its_worker_group(tmp_path, ray_session):
    """Three tasks share a worker group; one of them has a NaN in its training rows."""
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
    assert len(logger.children["bad"].tag_calls) == 1  # bad data does not cause a restart
    single = list(fit(tasks[0], state_dir=tmp_path / "single", device="cpu"))
    loss = read_json(tmp_path / "out" / "one" / "history.json")["epochs"][-1]["train_loss"]
    assert loss == pytest.approx(single[-1].metrics["train_loss"], abs=1e-6)


CAPACITY_MESSAGE = "each, but the cluster has room for"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus_per_worker": 1}, f"1 CPU and 1 GPU {CAPACITY_MESSAGE} 0: too little GPU"),
        ({"cpus_per_worker": 64}, f"64 CPU {CAPACITY_MESSAGE} 0: too little CPU"),
        ({"workers": 9}, f"9 workers with 1 CPU {CAPACITY_MESSAGE} 4: too little CPU"),
    ],
)
def test_a_request_that_the_cluster_can_never_fulfil_is_refused_within_seconds(
    corpus, tmp_path, ray_session, settings, message
):
    from multistill.training.launcher import train

    started = time.monotonic()
    with pytest.raises(MultistillError, match=message):
        train([make_task(corpus, **settings)], tmp_path)
    assert time.monotonic() - started < 10
