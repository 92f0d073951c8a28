"""Training through real Ray Train: same losses, live records, killed workers, refusals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from training_corpus import make_corpus, make_task, with_dropout

from multistill.errors import MultistillError
from multistill.models.files import load_model
from multistill.training.capacity import lanes, require, slots
from multistill.training.loop import fit
from multistill.training.result import is_finished
from multistill.watch import Silent
from multistill.workspace import read_json


@dataclass
class Recorder(Silent):
    """A watch that keeps what it is told, and may act on an epoch."""

    record_id: str | None = None
    epochs: dict[str, list[tuple[int, dict[str, float], float]]] = field(default_factory=dict)
    tagged: dict[str, list[str]] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    kill_after: dict[str, int] = field(default_factory=dict)

    def child(self, name: str, key: str, kind: str) -> Child:
        assert (key, kind) == (name, "model")
        return Child(self, name)


@dataclass
class Child(Silent):
    root: Recorder
    name: str

    @property
    def record_id(self) -> str:
        return f"record-{self.name}"

    def say(self, message: str) -> None:
        self.root.said.append(message)

    def tags(self, values: Mapping[str, str]) -> None:
        self.root.tagged.setdefault(self.name, []).append(values["worker"])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            return
        self.root.epochs.setdefault(self.name, []).append((step, dict(values), time.monotonic()))
        if self.root.kill_after.get(self.name) == step:
            del self.root.kill_after[self.name]
            os.kill(int(self.root.tagged[self.name][-1].split(":")[1]), signal.SIGKILL)

    def close(self, status: str = "FINISHED") -> None:
        self.root.status[self.name] = status


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.ray
def test_killed_two_worker_training_equals_one_worker(corpus, tmp_path, ray_session):
    """Two ranks over gloo, rank 0 killed with SIGKILL in mid-training, against one process."""
    from multistill.training.launcher import train

    task = make_task(corpus, "teacher", epochs=6, batch_size=8, workers=2, accumulation=2)
    watch = Recorder(kill_after={"teacher": 3})
    [result] = train([task], tmp_path / "out", watch)
    folder = tmp_path / "out" / "teacher"

    alone = list(fit(task, state_dir=tmp_path / "alone", device="cpu"))
    history = read_json(folder / "history.json")["epochs"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 7))
    for name in ("train_loss", "valid_loss", "valid_macro_f1"):
        found = [epoch[name] for epoch in history]
        assert found == pytest.approx([report.metrics[name] for report in alone], abs=1e-3)

    assert len(set(watch.tagged["teacher"])) == 2  # two processes worked on it
    assert any("continuing after epoch" in line for line in watch.said)
    steps = [step for step, _, _ in watch.epochs["teacher"]]
    assert sorted(set(steps)) == list(range(1, 7))
    assert len(steps) <= 7  # at most the epoch in hand was done twice
    assert watch.status == {"teacher": "FINISHED"}
    assert result["record_id"] == "record-teacher"
    assert result["folder"] == str(folder)
    model = load_model(folder, {"audio_dim": 12, "text_dim": 8})
    assert model.spec.to_dict() == task.spec
    assert {entry.name for entry in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "history.json",
    }

    again = Recorder()
    assert train([task], tmp_path / "out", again)[0]["best_epoch"] == result["best_epoch"]
    assert again.epochs == {}  # nothing was trained again


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
    watch = Recorder()
    started = time.monotonic()
    with pytest.raises(MultistillError, match=r"utt-021.*not-finite\.json"):
        train(tasks, tmp_path / "out", watch)
    print("seconds", time.monotonic() - started)
    assert is_finished(tmp_path / "out" / "one")
    assert is_finished(tmp_path / "out" / "three")
    assert not is_finished(tmp_path / "out" / "bad")
    assert watch.status == {"one": "FINISHED", "bad": "FAILED", "three": "FINISHED"}
    assert len(watch.tagged["bad"]) == 1  # a bad row is not met a second time by a restart
    alone = list(fit(tasks[0], state_dir=tmp_path / "alone", device="cpu"))
    found = read_json(tmp_path / "out" / "one" / "history.json")["epochs"][-1]["train_loss"]
    assert found == pytest.approx(alone[-1].metrics["train_loss"], abs=1e-6)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"gpus_per_worker": 1}, "1 CPU and 1 GPU each, but the cluster has room for 0: GPU"),
        ({"cpus_per_worker": 64}, "64 CPU each, but the cluster has room for 0: CPU"),
        ({"workers": 9}, "9 workers with 1 CPU each, but the cluster has room for 4: CPU"),
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


def test_a_worker_does_not_span_two_nodes():
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 16.0}]
    assert slots(nodes, {"CPU": 2.0}) == 9
    assert slots(nodes, {"CPU": 2.0, "GPU": 1.0}) == 1
    assert slots(nodes, {"CPU": 1.0, "GPU": 0.5}) == 2
    with pytest.raises(MultistillError, match="GPU is lacking"):
        require("x", 2, {"CPU": 1.0, "GPU": 1.0}, nodes)
    require("x", 1, {"CPU": 1.0, "GPU": 1.0}, nodes)


def test_lanes_are_what_is_free_and_never_more_than_tasks():
    nodes = [{"CPU": 8.0}] * 2
    need = {"CPU": 1.0}
    assert lanes(20, 2, need, nodes, {"CPU": 16.0}) == 8
    assert lanes(3, 2, need, nodes, {"CPU": 16.0}) == 3
    assert lanes(20, 2, need, nodes, {"CPU": 5.0}) == 2
    assert lanes(20, 4, need, nodes, {"CPU": 1.0}) == 1
