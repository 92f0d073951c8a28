"""Real searches with Ray Tune and Optuna; most of them with objectives in place of training."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import search_objectives
from helpers.paths import PYTHONPATH, ROOT, TESTS
from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK, choice, interval, search_again
from helpers.training_corpus import make_corpus, make_task
from optuna.trial import TrialState

from multistill.config import DistillationConfig, SearchConfig
from multistill.distillation.targets import write_soft_targets
from multistill.errors import MultistillError, UsageError
from multistill.full_disk import FullDiskError
from multistill.search.journal_file import JournalFile
from multistill.search.spec import SearchSpec
from multistill.search.study import search
from multistill.training.task import TrainingTask

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def recording_logger() -> RecordingLogger:
    return RecordingLogger(child_kind="trial")


def config(**more) -> SearchConfig:
    return SearchConfig(**{"trials": 8, "concurrent": 2, "startup_trials": 3, **more})


def run_search(out: Path, name: str, logger=None, **more) -> dict:
    objective = getattr(search_objectives, name)
    return search(TASK, config(**more), 1, out, logger, "0123", objective=objective)


def table(out: Path) -> list[dict]:
    return pq.read_table(out / "trials.parquet").to_pylist()


def epochs_run(out: Path) -> Counter:
    """(trial, epoch) -> how often an objective ran it."""
    lines = (out / "ran.log").read_text().splitlines()
    return Counter(tuple(line.split()[:2]) for line in lines)


@pytest.fixture
def out(tmp_path):
    """A folder of its own for one search, which copies the trials of smaller ones next to it."""
    (tmp_path / "search").mkdir()
    return tmp_path / "search"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_session):
    out, logger = tmp_path_factory.mktemp("searches") / "small", recording_logger()
    return out, run_search(out, "fast", logger), logger


def test_every_trial_is_counted_logged_and_ranked(finished):
    out, summary, logger = finished
    rows = table(out)
    assert [row["trial"] for row in rows] == list(range(8))
    assert summary["counts"]["complete"] + summary["counts"]["stopped"] == summary["trials"] == 8
    assert json.loads(rows[0]["params"]) == {
        "distillation.temperature": 2.0,
        "distillation.weight": 0.5,
    }, "the student as configured is the first trial"
    complete = [row["value"] for row in rows if row["state"] == "complete"]
    assert summary["best"]["value"] == max(complete)
    assert summary["top"] == [summary["best"]["params"]]
    for row in rows:
        assert (row["state"] == "complete") == (row["epochs"] == 9)
        child = logger.children[row["key"]]
        assert child.status == "FINISHED"
        assert child.logged_params == json.loads(row["params"])
        assert child.steps == list(range(1, row["epochs"] + 1)), "one row per epoch"
    assert logger.progress_calls[-1][:2] == (8, 8)


def test_the_scheduler_stops_trials_and_gives_the_reason(finished):
    out, summary, _ = finished
    stopped = [row for row in table(out) if row["state"] == "stopped"]
    assert stopped, "none of eight trials was stopped"
    assert all("scheduler" in row["reason"] and 3 <= row["epochs"] < 9 for row in stopped)
    assert summary["trained_epochs"] == sum(epochs_run(out).values()) < 8 * 9


def test_only_the_tables_and_the_study_are_left(finished):
    out, _, _ = finished
    names = {path.name for path in out.rglob("*")} - {"ran.log"}
    assert names == {
        "search.json", "study.json", "study.lock", "study.log", "study.log.lock", "trials.parquet",
    }  # fmt: skip
    assert all(json.loads(line) for line in (out / "study.log").read_text().splitlines())


def test_a_finished_search_called_again_trains_nothing(finished):
    out, summary, _ = finished
    before = epochs_run(out)
    again = search_again(out, search_objectives.fast)
    assert epochs_run(out) == before
    assert again["best"] == summary["best"]
    assert again["counts"] == summary["counts"]
    assert again["seconds"] > summary["seconds"], "what it cost is the sum over all calls"
    assert again["start_seconds"] == summary["start_seconds"]


def test_a_larger_search_copies_the_trials_of_the_smaller(finished):
    out, summary, _ = finished
    larger = out.parent / "larger"
    extended = run_search(larger, "fast", trials=11, concurrent=1)
    old, new = table(out), table(larger)
    assert len(new) == extended["trials"] == 11
    copied = ("trial", "state", "params", "value", "epochs", "reason")
    assert [[row[k] for k in copied] for row in new[:8]] == [
        [row[k] for k in copied] for row in old
    ]
    assert {trial for trial, _ in epochs_run(larger)} == {"0008", "0009", "0010"}
    assert extended["best"]["value"] >= summary["best"]["value"]
    assert len({row["params"] for row in new}) == 11, "a continued sampler repeats no point"


def test_diverged_trials_fail_with_their_reason_also_in_a_database(out, monkeypatch):
    # Two Tune experiments, as a search of thousands of trials has.
    monkeypatch.setattr("multistill.search.experiment.MAX_TRIALS", 4)
    monkeypatch.setattr("multistill.search.experiment.MAX_TRIALS_PER_SLOT", 1)
    logger = recording_logger()
    more = {
        "trials": 6,
        "concurrent": 1,
        "space": {"distillation.weight": choice(0.2, 0.4, 0.6, 0.8)},
        "grace_epochs": 9,
        "sampler": "random",
        "storage": f"sqlite:///{out / 'study.db'}",
    }
    summary = run_search(out, "diverging", logger, **more)
    assert not (out / "study.log").exists()
    assert {row["state"] for row in table(out)} == {"complete", "failed"}
    assert summary["counts"]["running"] == 0
    assert [row["trial"] for row in table(out)] == list(range(6)), "over both experiments"
    assert logger.progress_calls[-1][:2] == (6, 6)
    for row in table(out):
        weight = json.loads(row["params"])["distillation.weight"]
        assert (row["state"] == "failed") == (weight > 0.5)
        if weight > 0.5:
            assert row["reason"] == "diverged: train_loss is nan in epoch 2"
            assert row["value"] is None
            assert logger.children[row["key"]].status == "FAILED"


def test_a_search_in_which_every_trial_fails_stops_and_continues_after_the_fix(out):
    with pytest.raises(MultistillError, match=r"one after another.*valid_macro_f1 was not repor"):
        run_search(out, "without_metric", trials=40, concurrent=1)
    assert 3 <= len(table(out)) < 10, "it did not wait for forty failures"
    replace(SearchSpec.read(out), config=config(trials=4, concurrent=1)).write(out)
    summary = run_search(out, "fast", trials=4, concurrent=1)
    assert summary["counts"]["complete"] + summary["counts"]["stopped"] >= 4


def test_a_trial_that_raises_is_retried_and_then_fails_with_the_message(out):
    logger = recording_logger()
    with pytest.raises(MultistillError, match="CUDA out of memory"):
        run_search(out, "raising", logger, trials=1, concurrent=1)
    assert sum("continues from its last checkpoint" in line for line in logger.messages) == 1
    assert {row["reason"] for row in table(out)} == {"RuntimeError: CUDA out of memory"}


def test_a_full_disk_ends_the_search_and_no_trial_fails_by_it(out):
    (out / "full").touch()
    with pytest.raises(FullDiskError, match="finished epochs are kept"):
        run_search(out, "full_disk", trials=3)
    (out / "full").unlink()
    summary = run_search(out, "full_disk", trials=3)
    assert summary["counts"]["failed"] == 0
    assert summary["counts"]["complete"] + summary["counts"]["stopped"] == 3
    assert set(epochs_run(out).values()) == {1}, "a finished epoch ran again"


def test_a_full_disk_of_the_journal_costs_no_trial_its_end(out, monkeypatch):
    logger = recording_logger()
    append = JournalFile.append_logs

    def append_no_end(journal: JournalFile, logs: list[dict]) -> None:
        if any(TrialState(log.get("state", 0)).is_finished() for log in logs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(journal, logs)

    monkeypatch.setattr(JournalFile, "append_logs", append_no_end)
    with pytest.raises(FullDiskError, match="finished epochs are kept"):
        run_search(out, "fast", logger, trials=3, grace_epochs=9)
    monkeypatch.undo()
    assert {child.status for child in logger.children.values()} == {"KILLED"}
    summary = run_search(out, "fast", logger, trials=3, grace_epochs=9)
    assert summary["counts"] == {"complete": 3, "stopped": 0, "failed": 0, "running": 0}
    assert set(epochs_run(out).values()) == {1}, "a finished epoch ran again"
    assert len(logger.children) == 3, "a continued trial got a run of its own"
    assert {child.status for child in logger.children.values()} == {"FINISHED"}


def test_a_killed_trial_process_continues_from_its_last_epoch(out):
    logger = recording_logger()
    summary = run_search(out, "killed_once", logger, trials=2, concurrent=1)
    assert (out / "killed").exists()
    assert summary["counts"]["failed"] == 0, logger.messages
    assert any("its process died" in line for line in logger.messages)
    ran = epochs_run(out)
    assert all(ran["0000", str(epoch)] == 1 for epoch in range(1, 10)), "an epoch ran twice"


def driver(out: Path, action: str, objective: str) -> subprocess.Popen:
    import ray

    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [
            sys.executable,
            str(TESTS / "helpers" / "search_driver.py"),
            address,
            str(out),
            action,
            objective,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        text=True,
    )


def write_search(out: Path, **more) -> None:
    """Write a search that no driver has started yet."""
    SearchSpec(TASK, config(**more), 1, "0123", "study-of-test").write(out)


def wait_until(condition, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


def num_epochs_run(out: Path) -> int:
    return sum(epochs_run(out).values()) if (out / "ran.log").exists() else 0


def test_no_trial_is_lost_or_counted_twice_after_interrupts_and_a_kill(tmp_path):
    """Two interrupts, then one, then SIGKILL, each to the next driver of the same search."""
    write_search(tmp_path, trials=4, grace_epochs=9)
    process = driver(tmp_path, "search", "stuck_once")
    wait_until(lambda: len(list(tmp_path.glob("stuck-*"))) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(2.0)
    assert process.poll() is None, "the first interrupt waits for running epochs"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert set(epochs_run(tmp_path).values()) == {1}

    process = driver(tmp_path, "search", "stuck_once")
    wait_until(lambda: num_epochs_run(tmp_path) >= 6)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "stopping: running trials finish their epoch" in output
    assert not (tmp_path / "study.json").exists()
    interrupted = epochs_run(tmp_path)
    assert set(interrupted.values()) == {1}, "an epoch on disk ran again"

    process = driver(tmp_path, "search", "stuck_once")
    wait_until(lambda: num_epochs_run(tmp_path) >= interrupted.total() + 7)
    process.kill()
    process.wait()
    killed = epochs_run(tmp_path)
    assert set(killed.values()) == {1}, "a clean stop repeated an epoch"
    started = {trial for trial, _ in killed}
    logger = recording_logger()
    summary = search_again(tmp_path, search_objectives.stuck_once, logger)
    rows = table(tmp_path)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert summary["counts"] == {"complete": 4, "stopped": 0, "failed": 0, "running": 0}
    again = Counter(epochs_run(tmp_path).values())
    assert set(again) <= {1, 2} and again[2] <= 2, "only epochs running at the kill run again"
    assert started & {key.split("-")[1] for key in logger.children}, "none was continued"
    assert all(row["epochs"] == 9 for row in rows)


def test_two_drivers_share_one_study(tmp_path):
    write_search(tmp_path, trials=6, concurrent=1, grace_epochs=9)
    process = driver(tmp_path, "join", "slow")
    wait_until(lambda: num_epochs_run(tmp_path) >= 1)
    logger = recording_logger()
    summary = search_again(tmp_path, search_objectives.slow, logger)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    other_driver = {line.split()[1] for line in output.splitlines() if line.startswith("child")}
    joined = {
        key for key, child in logger.children.items() if child.logged_tags.get("driver") == "joined"
    }
    assert joined == other_driver, "the driver that started the search logs the trials of the other"
    assert other_driver and set(logger.children) - other_driver, "one of the drivers had no trial"
    assert len(logger.children) == summary["trials"] == 6
    assert set(epochs_run(tmp_path).values()) == {1}, "both drivers ran a trial"
    for key in other_driver:
        child = logger.children[key]
        assert child.steps == list(range(1, 10)) and child.status == "FINISHED"
    assert not list(tmp_path.glob("drivers/*"))


def real_student(folder: Path, **train) -> TrainingTask:
    corpus = make_corpus(folder / "corpus")
    outside_test = pq.read_table(corpus[0], filters=[("split", "!=", "test")])
    ids = outside_test["utterance_id"].to_pylist()
    logits = np.random.default_rng(0).normal(size=(len(ids), 7)).astype(np.float32)
    targets = folder / "soft.parquet"
    write_soft_targets(targets, ids, logits, "teacher", np.full(len(ids), -1))
    return replace(
        make_task(corpus, **train),
        soft_targets=str(targets),
        distillation=DistillationConfig(),
    )


def test_real_students_are_searched_with_a_second_objective(tmp_path):
    base = real_student(tmp_path, epochs=2)
    space = {
        "distillation.temperature": interval(1.0, 8.0),
        "model.width": choice(16, 32),
        "train.learning_rate": interval(1e-3, 1e-2, log=True),
    }
    searched = SearchConfig(trials=4, concurrent=2, space=space, second="parameters")
    summary = search(base, searched, 1, tmp_path / "out", fingerprint="real")
    rows = table(tmp_path / "out")
    assert all(row["state"] == "complete" and 0 <= row["value"] <= 1 for row in rows)
    sizes = {json.loads(row["params"])["model.width"]: row["cost"] for row in rows}
    assert len(sizes) == 1 or sizes[16] < sizes[32]
    front = summary["pareto"]
    assert front and all(a["cost"] < b["cost"] for a, b in pairwise(front))
    for row in rows:
        assert any(p["cost"] <= row["cost"] and p["value"] >= row["value"] for p in front)


def test_stopped_trials_of_two_workers_free_their_resources(tmp_path):
    """A Ray Train run in each trial; the second starts only if the first freed its CPUs."""
    space = {"train.learning_rate": choice(3e-2, 1e-9)}
    searched = SearchConfig(
        trials=2, space=space, sampler="grid", workers_per_trial=2, grace_epochs=1, reduction=2
    )
    logger, out = recording_logger(), tmp_path / "out"
    summary = search(real_student(tmp_path, epochs=4), searched, 1, out, logger, "nested")
    assert summary["concurrency"] == 1
    assert summary["counts"]["failed"] == summary["counts"]["running"] == 0
    for row in table(out):
        assert logger.children[row["key"]].steps == list(range(1, row["epochs"] + 1))
    assert not list(out.rglob("stop")), "folders of ended trials are gone"
    import ray

    wait_until(lambda: ray.available_resources().get("CPU") == 4.0, 60)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"workers_per_trial": 9}, "no room for 9 workers"),
        ({"gpus_per_trial": 1}, "requests 1 GPUs, but the largest node has 0"),
        ({"cpus_per_trial": 64}, "the largest node has 4"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "cannot be reached"),
        ({"space": {"model.depth": interval(1, 2)}}, "cannot be searched"),
    ],
)
def test_an_impossible_search_is_refused_in_one_sentence_before_any_trial(tmp_path, more, message):
    with pytest.raises(UsageError, match=message) as caught:
        run_search(tmp_path / "out", "fast", **more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "ran.log").exists()


def test_a_folder_of_another_search_is_refused(finished):
    out, _, _ = finished
    with pytest.raises(UsageError, match="other settings"):
        run_search(out, "fast", metric="uar")
    with pytest.raises(UsageError, match="stored in the workspace"):
        run_search(out, "fast", storage=f"sqlite:///{out / 'other.db'}")
    with pytest.raises(UsageError, match="holds no search"):
        SearchSpec.read(out / "nothing")
