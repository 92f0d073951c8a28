"""Learning a corpus after another: which rows, which weights, and what holds them back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.training_corpus import Corpus, as_two, make_task, run, trained, weights
from safetensors.torch import load_file, save_file

from multistill.corpora.manifest import read_manifest
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.models.files import load_model
from multistill.models.parts import is_of_classifier
from multistill.training.consolidation import FISHER, QuadraticPenalty, write_fisher
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask


@pytest.fixture(scope="module")
def two(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return as_two(corpus, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def first(two: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of the first corpus."""
    folder = tmp_path_factory.mktemp("models") / "0123456789abcdef"
    trained(task(two, first=1.0), folder)
    return folder


@pytest.fixture(scope="module")
def fisher(two: Corpus, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fisher")
    assert write_fisher(first, two[0], two[1], "first", folder)["clips"] > 20
    return folder


def task(two: Corpus, **corpora: float) -> TrainingTask:
    return replace(make_task(two), role="teacher", corpora=corpora)


def second(two: Corpus, first: Path, **more: object) -> TrainingTask:
    """The training on the second corpus that goes on from the first."""
    changes: dict[str, object] = {"initial": {"": str(first)}, **more}
    return replace(task(two, second=1.0), **changes)  # type: ignore[arg-type]


def test_a_task_reads_the_rows_of_its_corpora(two: Corpus) -> None:
    rows = read_manifest(two[0], ["utterance_id", "corpus"]).to_pydict()
    of = dict(zip(rows["utterance_id"], rows["corpus"], strict=True))
    every, own = TrainingData.open(make_task(two)), TrainingData.open(task(two, second=1.0))
    assert {of[name] for name in (*own.train.ids, *own.valid.ids)} == {"second"}
    both = TrainingData.open(task(two, first=1.0, second=1.0))
    assert both.train.ids == every.train.ids
    assert both.valid.ids == every.valid.ids
    replayed = TrainingData.open(task(two, first=0.25, second=1.0))
    old = [name for name in replayed.train.ids if of[name] == "first"]
    assert replayed.valid.ids == own.valid.ids, "the earlier corpus has no say in the epoch"
    labels = dict(zip(every.train.ids, every.train.labels.tolist(), strict=True))
    for label in set(labels.values()):
        whole = [name for name, each in labels.items() if each == label and of[name] == "first"]
        drawn = [name for name in old if labels[name] == label]
        assert len(drawn) == (max(1, round(len(whole) / 4)) if whole else 0)


def test_fisher_information_is_that_of_every_clip_by_itself(
    two: Corpus, first: Path, fisher: Path
) -> None:
    """Against a second computation: squared gradients of the log-probabilities, clip by clip."""
    model = load_model(first).eval()
    ids = TrainingData.open(task(two, first=1.0)).train.ids
    name = "classifier.4.bias"
    expected = torch.zeros_like(model.get_parameter(name))
    store = FeatureStore(two[1])
    for clip in ids:
        batch = collate(store, [clip])
        given = (batch.audio, batch.audio_mask, batch.text, batch.text_mask)
        probabilities = model(*given).logits[0].softmax(0)
        for label in range(len(probabilities)):
            model.zero_grad()
            (-model(*given).logits[0].log_softmax(0)[label]).backward()
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            expected += probabilities[label].detach() * gradient**2 / len(ids)
    torch.testing.assert_close(load_file(fisher / FISHER)[name], expected)


def test_fisher_information_adds_up_over_corpora(
    two: Corpus, first: Path, fisher: Path, tmp_path: Path
) -> None:
    for name, earlier in (("alone", None), ("both", fisher)):
        write_fisher(first, *two, "second", tmp_path / name, "labels", 9, 3, earlier)
    old, new, both = (
        load_file(f / FISHER) for f in (fisher, tmp_path / "alone", tmp_path / "both")
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, old[name] + new[name])


def test_the_penalty_is_quadratic_around_the_start(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    save_file({"a": torch.tensor([3.0, 0.5]), "frozen": torch.ones(1)}, tmp_path / FISHER)
    penalty = QuadraticPenalty({"a": parameter}, tmp_path, weight=4.0)
    assert penalty().item() == 0
    with torch.no_grad():
        parameter += torch.tensor([1.0, -2.0])
    assert penalty().item() == pytest.approx(4 / 2 * (3 * 1 + 0.5 * 4))


def test_without_a_parameter_to_hold_back_there_is_no_penalty(tmp_path: Path) -> None:
    save_file({"wide.linear.weight": torch.ones(2)}, tmp_path / FISHER)
    assert QuadraticPenalty({}, tmp_path, weight=4.0)().item() == 0


def distance(state: Path, start: Path) -> float:
    """From the weights of a finished model."""
    model = load_model(start).state_dict()
    vector = torch.cat([model[name].flatten().double() for name in sorted(model)])
    return float((weights(state) - vector).norm())


def test_a_heavier_penalty_leaves_less_change(
    two: Corpus, first: Path, fisher: Path, tmp_path: Path
) -> None:
    found = []
    for weight in (0.0, 100.0, 1e5):
        own = second(two, first, fisher=str(fisher), fisher_weight=weight)
        run(own, tmp_path / f"{weight}")
        found.append(distance(tmp_path / f"{weight}", first))
    run(second(two, first), tmp_path / "free")
    assert found[0] == pytest.approx(distance(tmp_path / "free", first), rel=1e-4)
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("method", ["finetune", "ewc", "replay", "head-only", "new head"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    two: Corpus, first: Path, fisher: Path, tmp_path: Path, method: str
) -> None:
    changes = {
        "finetune": {},
        "ewc": {"fisher": str(fisher), "fisher_weight": 50.0},
        "replay": {"corpora": {"first": 0.3, "second": 1.0}},
        "head-only": {"trains": "classifier"},
        "new head": {"new_classifier": True, "fisher": str(fisher), "fisher_weight": 50.0},
    }[method]
    own = second(two, first, **changes)
    run(own, tmp_path / "whole")
    for _ in fit(own, state_dir=tmp_path / "parts", device="cpu"):
        break
    run(own, tmp_path / "parts")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_head_only_changes_the_classifier_alone(two: Corpus, first: Path, tmp_path: Path) -> None:
    summary = trained(second(two, first, trains="classifier"), tmp_path)
    before, after = load_model(first), load_model(tmp_path)
    moved = {
        name
        for name, tensor in after.state_dict().items()
        if not torch.equal(tensor, before.state_dict()[name])
    }
    assert moved == {n for n, _ in after.named_parameters() if is_of_classifier(n, after)}
    assert summary["trained_parameters"] == sum(after.get_parameter(n).numel() for n in moved)


def test_a_new_classifier_is_drawn_and_the_body_goes_on(
    two: Corpus, first: Path, tmp_path: Path
) -> None:
    """With a rate of next to nothing, a model is what it started as."""
    own = second(two, first, new_classifier=True)
    trained(own.with_train(learning_rate=1e-12, epochs=1, weight_decay=0), tmp_path)
    before, after = load_model(first), load_model(tmp_path)
    for name, tensor in after.named_parameters():
        kept = torch.allclose(tensor, before.get_parameter(name), atol=1e-6)
        assert kept != is_of_classifier(name, after) or not tensor.any(), name
