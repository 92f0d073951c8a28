"""Small weights per corpus inside encoders that stay as they are, on a store for whole encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.joint_case import make_input_corpus, make_joint_task
from helpers.training_corpus import Corpus, run, trained, weights

from multistill.config.continual import ContinualConfig, Method
from multistill.models.files import load_model
from multistill.models.joint import JointModel, build_model, trained_state
from multistill.models.parts import is_of_classifier
from multistill.models.presets import resolve
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask


@pytest.fixture(scope="module")
def of_inputs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_input_corpus(tmp_path_factory.mktemp("inputs"), "full", "full")


def task(corpus: Corpus, method: Method, seed: int = 0) -> TrainingTask:
    """A training as a continual job makes it of a store for whole encoders."""
    config = ContinualConfig(bottleneck=3, rank=2)
    base = make_joint_task(corpus, epochs=1)
    spec = resolve("pooled-strided", {"width": 8, "standardize": "encoder"})
    adapted = config.adapted(method)
    sources = base.encoders
    if adapted is not None:
        sources = {
            name: replace(source.adapted(adapted), seed=seed) for name, source in sources.items()
        }
    return replace(base, role="teacher", spec=spec, encoders=sources)


def build(own: TrainingTask) -> JointModel:
    store = TrainingData.open(own).store
    torch.manual_seed(own.seed)
    model = build_model(own.spec, store.audio_dim, store.text_dim, own.load_encoders())
    assert isinstance(model, JointModel)
    return model


@pytest.mark.parametrize("method", ["adapter", "adapter-untrained", "lora"])
def test_frozen_encoders_stay_and_small_weights_come_back(
    of_inputs: Corpus, tmp_path: Path, method: Method
) -> None:
    own = task(of_inputs, method)
    summary = trained(own, tmp_path)
    before, after = build(own), load_model(tmp_path)
    assert isinstance(after, JointModel)
    kinds = {"lora": ("lora_",)}.get(method, ("adapter.", "norm", "LayerNorm"))
    own_names = {name for name, p in after.encoders.named_parameters() if p.requires_grad}
    assert own_names
    assert all(any(kind in name for kind in kinds) for name in own_names)
    for name, parameter in before.encoders.named_parameters():
        if name not in own_names:
            assert torch.equal(parameter, after.encoders.get_parameter(name)), name
    whole = build(task(of_inputs, "finetune"))
    counts = [
        sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (after, whole)
    ]
    assert summary["trained_parameters"] == counts[0] < counts[1]


@pytest.mark.parametrize("method", ["adapter", "adapter-untrained", "lora", "finetune"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    of_inputs: Corpus, tmp_path: Path, method: Method
) -> None:
    own = task(of_inputs, method, seed=3).with_train(epochs=2)
    run(own, tmp_path / "whole")
    for _ in fit(own, state_dir=tmp_path / "parts", device="cpu"):
        break
    run(own, tmp_path / "parts")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_memory_is_saved_as_the_features_say(of_inputs: Corpus) -> None:
    adapted = ContinualConfig().adapted("adapter")
    assert adapted is not None
    for source in make_joint_task(of_inputs).encoders.values():
        train = {**source.config.train.model_dump(), "gradient_checkpointing": True}
        assert source.with_training(train).adapted(adapted).config.train.gradient_checkpointing
        assert (
            source.adapted(adapted).identity()
            == source.with_training(train).adapted(adapted).identity()
        )


def test_untrained_weights_are_others_for_every_seed_and_come_back(
    of_inputs: Corpus, tmp_path: Path
) -> None:
    name = "text.network.model.embeddings.word_embeddings.weight"
    known, drawn, again, other = (
        build(task(of_inputs, method, seed)).encoders.get_parameter(name)
        for method, seed in (
            ("adapter", 0),
            ("adapter-untrained", 0),
            ("adapter-untrained", 0),
            ("adapter-untrained", 1),
        )
    )
    assert torch.equal(drawn, again)
    assert not torch.equal(known, drawn)
    assert not torch.equal(other, drawn)
    assert not drawn.requires_grad
    trained(task(of_inputs, "adapter-untrained", 1), tmp_path)
    model = load_model(tmp_path)
    assert isinstance(model, JointModel)
    assert torch.equal(model.encoders.get_parameter(name), other)
    identities = [
        [source.identity() for source in task(of_inputs, method, seed).encoders.values()]
        for method in ("adapter", "adapter-untrained")
        for seed in (0, 1)
    ]
    assert identities[0] == identities[1], "nothing is drawn, so the seed decides nothing"
    assert identities[2] != identities[3]


def test_head_only_keeps_a_trained_encoder(of_inputs: Corpus, tmp_path: Path) -> None:
    first = tmp_path / "0123456789abcdef"
    base = task(of_inputs, "finetune")
    trained(base, first)
    changed = replace(base, initial={"": str(first)}, trains="classifier")
    trained(changed.with_train(epochs=2), tmp_path / "second")
    old, new = (trained_state(load_model(folder)) for folder in (first, tmp_path / "second"))
    model = load_model(first)
    for name, tensor in old.items():
        kept = torch.equal(tensor, new[name])
        assert kept != is_of_classifier(name, model), name
