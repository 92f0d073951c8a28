"""FE2E and MESM in the training loop: resumed, split, on workers, with a text encoder."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.joint_case import make_input_corpus, make_joint_task
from helpers.training_corpus import Corpus, ThreadGroup, losses, make_task, run, trained, weights

from multistill.models.files import load_model, read_model_config
from multistill.models.joint import JointModel, build_model
from multistill.models.parts import is_of_classifier
from multistill.models.presets import resolve
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.encoder_groups import layer_schedule
from multistill.training.loop import fit
from multistill.training.task import TrainingTask

TINY = {
    "width": 8,
    "heads": 2,
    "layers": 1,
    "feedforward": 16,
    "front_channels": 2,
    "chunk_frames": 8,
    "chunk_hidden": 8,
}


def task_of(corpus: Corpus, preset: str, spec: Any = (), **train: Any) -> TrainingTask:
    task = make_task(corpus, **{"epochs": 3, **train})
    return replace(task, spec=resolve(preset, {**TINY, **dict(spec)}))


@pytest.mark.parametrize("preset", ["small-fe2e", "small-mesm", "paper-fe2e", "paper-mesm"])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    corpus: Corpus, tmp_path: Path, preset: str
) -> None:
    averaged = 1.5 if preset.startswith("paper") else 0.0  # running statistics beside an average
    task = task_of(corpus, preset, average_epochs=averaged)
    uninterrupted = run(task, tmp_path / "a")
    interrupted = fit(task, state_dir=tmp_path / "b", device="cpu")
    next(interrupted)
    interrupted.close()
    resumed = run(task, tmp_path / "b")
    assert losses(resumed) == losses(uninterrupted)[1:]
    assert losses(resumed, "valid_loss") == losses(uninterrupted, "valid_loss")[1:]
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def without_dropout(corpus: Corpus, **train: Any) -> TrainingTask:
    # The norm of two channels is a sign, which no rounding error may flip.
    none = {"dropout": 0.0, "classifier_dropout": 0.0, "modality_dropout": 0.0, "front_channels": 8}
    return task_of(corpus, "small-mesm", none, **train)


@pytest.mark.parametrize("split", [{"accumulation": 3}, {"batch_frames": 60}])
def test_neither_micro_batches_nor_workers_change_a_loss(
    corpus: Corpus, tmp_path: Path, split: dict[str, int], shared_network: None
) -> None:
    whole = run(without_dropout(corpus), tmp_path / "whole")
    parts = run(without_dropout(corpus, **split), tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)
    two = ThreadGroup(2).fit(without_dropout(corpus), tmp_path / "two")
    assert losses(two[0]) == pytest.approx(losses(whole), abs=1e-4)


@pytest.fixture
def shared_network(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share torch's random state, so they must not draw weights at the same time."""
    task = without_dropout(corpus)
    store = TrainingData.open(task).store
    torch.manual_seed(task.seed)
    model = build_model(task.spec, store.audio_dim, store.text_dim, {})
    monkeypatch.setattr("multistill.training.loop.build_model", lambda *_: copy.deepcopy(model))


def test_batch_statistics_are_not_split_on_a_cpu(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(task_of(corpus, "paper-fe2e", epochs=2), tmp_path / "whole")
    monkeypatch.setattr("multistill.training.loop.CPU_MICRO_BATCH_VALUES", 60)
    parts = run(task_of(corpus, "paper-fe2e", epochs=2), tmp_path / "parts")
    assert losses(parts) == losses(whole)


def test_each_class_against_the_rest_is_learnt_with_thresholds(
    corpus: Corpus, tmp_path: Path
) -> None:
    task = task_of(
        corpus,
        "small-fe2e",
        epochs=12,
        learning_rate=1e-2,
        loss="one-vs-rest",
        class_weights="odds",
        label_source="winner",
    )
    trained(task, tmp_path)
    config = read_model_config(tmp_path)
    assert config["output"] == "one-vs-rest"
    assert len(config["thresholds"]) == task.spec.num_classes
    assert all(0.05 <= value <= 0.95 for value in config["thresholds"])
    assert config["temperature"] is not None
    history = load_model(tmp_path)
    assert history.spec.network == "fe2e"


def test_the_text_encoder_learns_at_its_own_rate(tmp_path: Path) -> None:
    corpus = make_input_corpus(tmp_path, "none", {"kind": "full", "learning_rate": 1e-4})
    task = replace(
        make_joint_task(corpus, epochs=2, learning_rate=1e-3), spec=resolve("small-mesm", TINY)
    )
    data = TrainingData.open(task)
    model = build_model(task.spec, data.store.audio_dim, data.store.text_dim, task.load_encoders())
    assert isinstance(model, JointModel)
    rates = layer_schedule(model, task).rates
    assert rates and all(np.isclose(rate, 0.1) for rate in rates.values())
    before = {name: value.clone() for name, value in model.trained_encoder_state().items()}
    run(task, tmp_path / "state")
    after, _ = best_weights(tmp_path / "state")
    assert any(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("preset", ["small-fe2e", "small-mesm", "paper-mesm"])
def test_the_classifier_goes_on_alone_after_another_corpus(
    corpus: Corpus, tmp_path: Path, preset: str
) -> None:
    first = tmp_path / "0123456789abcdef"
    own = replace(task_of(corpus, preset, epochs=1), role="teacher")
    trained(own, first)
    changed = replace(own, initial={"": str(first)}, trains="classifier")
    trained(changed.with_train(epochs=2), tmp_path / "second")
    before, after = load_model(first), load_model(tmp_path / "second")
    names = {name for name, _ in after.named_parameters() if is_of_classifier(name, after)}
    assert {name.partition(".")[0] for name in names} == {"audio_head", "text_head", "fusion"}
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]) != (name in names), name
