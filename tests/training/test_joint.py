"""Training of encoders together with a head: what holds for heads holds for these."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.joint_case import (
    make_input_corpus,
    make_joint_corpus,
    make_joint_task,
)
from helpers.training_corpus import ThreadGroup, losses, run, weights, with_dropout

from multistill.errors import MultistillError, UsageError
from multistill.inference.predict import predict
from multistill.inference.quantize import quantize
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import log_probabilities, softmax
from multistill.models.build import count_parameters
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import JointModel, build_model, load_trained_state, trained_state
from multistill.search.space import apply
from multistill.training.checkpoint import best_weights, load_checkpoint
from multistill.training.data import TrainingData
from multistill.training.encoder_groups import layer_schedule
from multistill.training.export import export
from multistill.training.loop import fit
from multistill.training.parts import trained_parameters
from multistill.training.task import TrainingTask

Corpus = tuple[Path, Path]


@pytest.fixture(scope="module")
def joint_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_joint_corpus(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def with_random_layers(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The encoder drops hidden values in training."""
    folder = tmp_path_factory.mktemp("dropping")
    return make_joint_corpus(folder, hidden_dropout=0.2, attention_dropout=0.2)


@pytest.fixture(scope="module")
def of_inputs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Waves and token ids, some transcripts empty."""
    return make_input_corpus(tmp_path_factory.mktemp("inputs"), "full", "lora")


def encoder_weights(state: Path) -> dict[str, torch.Tensor]:
    tensors, _ = best_weights(state)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("speech.")}


def initial(task: TrainingTask) -> dict[str, torch.Tensor]:
    model = build(task)
    return {name: tensor.clone() for name, tensor in model.trained_encoder_state().items()}


def build(task: TrainingTask) -> JointModel:
    store = TrainingData.open(task).store
    model = build_model(task.spec, store.audio_dim, store.text_dim, task.load_encoders())
    assert isinstance(model, JointModel)
    return model


def test_training_moves_the_encoder_and_its_checkpoint_holds_only_what_is_trained(
    joint_corpus: Corpus, tmp_path: Path
) -> None:
    task = make_joint_task(joint_corpus, {"kind": "last-2", "learning_rate": 1e-2}, epochs=6)
    reports = run(task, tmp_path)
    assert losses(reports)[-1] < losses(reports)[0]
    before, after = initial(task), encoder_weights(tmp_path)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in after if "weight" in name)
    trained = sum(tensor.numel() for tensor in after.values())
    assert trained <= count_parameters(build(task))


def test_two_runs_are_equal_and_a_resumed_one_equals_them(
    with_random_layers: Corpus, tmp_path: Path
) -> None:
    task = with_dropout(
        make_joint_task(
            with_random_layers,
            {"kind": "last-2", "learning_rate": 1e-2, "unfreeze_epochs": 1, "layer_decay": 0.5},
            epochs=4,
            average_epochs=1.5,
        )
    )
    uninterrupted = run(task, tmp_path / "a")
    for _, _ in zip(range(2), fit(task, state_dir=tmp_path / "b", device="cpu"), strict=False):
        pass
    resumed = run(task, tmp_path / "b")
    assert losses(uninterrupted)[-len(resumed) :] == losses(resumed)
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_micro_batches_change_no_weights(joint_corpus: Corpus, tmp_path: Path) -> None:
    train = {"kind": "last-2", "learning_rate": 1e-3}
    whole = run(make_joint_task(joint_corpus, train, batch_frames=10**6), tmp_path / "a")
    split = run(make_joint_task(joint_corpus, train, batch_frames=60), tmp_path / "b")
    assert losses(whole) == pytest.approx(losses(split), abs=1e-4)
    torch.testing.assert_close(weights(tmp_path / "a"), weights(tmp_path / "b"), atol=2e-4, rtol=0)


def test_encoders_of_both_modalities_learn_from_waves_and_token_ids(
    of_inputs: Corpus, tmp_path: Path
) -> None:
    def task(frames: int) -> TrainingTask:
        return make_joint_task(
            of_inputs,
            {"kind": "full", "learning_rate": 1e-3},
            {"modality": "multimodal"},
            epochs=3,
            max_frames=20,
            batch_frames=frames,
        )

    whole, split = run(task(10**6), tmp_path / "a"), run(task(60), tmp_path / "b")
    assert losses(whole) == pytest.approx(losses(split), abs=1e-3)
    assert losses(whole)[-1] < losses(whole)[0]
    model, data = build(task(60)), TrainingData.open(task(60))
    before = trained_state(model)
    after, _ = best_weights(tmp_path / "a")
    assert {name.split(".")[0] for name in after} == {"head", "speech", "text"}
    for section in ("speech", "text"):
        assert any(
            not torch.equal(before[name], after[name]) for name in after if name.startswith(section)
        )
    load_trained_state(model, after)
    ids = data.valid.ids
    together = predict(model, data.store, ids, "cpu", 20).logits
    alone = np.concatenate([predict(model, data.store, [name], "cpu", 20).logits for name in ids])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def assert_alike_from_two_workers(
    task: TrainingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = run(task, tmp_path / "1")
    # Threads share torch's random state, so they must not draw weights at the same time.
    torch.manual_seed(task.seed)
    model = build(task)
    monkeypatch.setattr(TrainingTask, "load_encoders", lambda _: {})
    monkeypatch.setattr("multistill.training.loop.build_model", lambda *_: copy.deepcopy(model))
    for reports in ThreadGroup(2).fit(task, tmp_path / "2"):
        assert losses(reports) == pytest.approx(losses(single), abs=1e-4)


def test_several_workers_give_the_losses_of_one(
    joint_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_joint_task(
        joint_corpus, {"kind": "last-2", "learning_rate": 1e-3}, batch_size=71, accumulation=2
    )
    assert_alike_from_two_workers(task, tmp_path, monkeypatch)


def test_layers_start_to_train_one_after_another_from_the_top(
    joint_corpus: Corpus, tmp_path: Path
) -> None:
    train = {"kind": "last-2", "learning_rate": 1e-2, "unfreeze_epochs": 1}
    task = make_joint_task(joint_corpus, train, epochs=3)
    groups = [
        {f"speech.{name}" for name in names}
        for _, encoder in build(task).trainable_encoders()
        for names in encoder.layer_groups()
    ]
    assert len(groups) == 2
    before, moved = initial(task), []
    for report in fit(task, state_dir=tmp_path, device="cpu"):
        now = load_checkpoint(tmp_path, report.epoch).model
        moved.append({name for name in before if not torch.equal(before[name], now[name])})
    assert not moved[0]
    assert moved[1] and moved[1] <= groups[0]
    assert moved[2] & groups[1]


def test_a_lower_layer_learns_slower_with_decay(joint_corpus: Corpus, tmp_path: Path) -> None:
    train = {"kind": "last-2", "learning_rate": 6e-3, "layer_decay": 0.5}
    task = make_joint_task(joint_corpus, train, learning_rate=3e-3)
    model = build(task)
    schedule = layer_schedule(model, task)
    names = {name for name, p in model.encoders.named_parameters("encoders") if p.requires_grad}
    assert set(schedule.rates) == names
    assert sorted(set(schedule.rates.values())) == [1.0, 2.0]
    assert not schedule.starts


def test_half_of_a_micro_batch_is_tried_where_memory_runs_out(
    joint_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"kind": "last-2", "learning_rate": 1e-3}
    task = make_joint_task(joint_corpus, train, batch_frames=10**6)
    enough = run(task, tmp_path / "a")
    forward, refused = JointModel.forward, []

    def limited(self: JointModel, audio: Any = None, *more: Any) -> Any:
        if self.training and len(audio) > 5:
            refused.append(len(audio))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, audio, *more)

    monkeypatch.setattr(JointModel, "forward", limited)
    short = run(task, tmp_path / "b")
    assert len(refused) == 2  # 16, then 8 rows, and never again
    assert losses(enough) == pytest.approx(losses(short), abs=1e-4)
    torch.testing.assert_close(weights(tmp_path / "a"), weights(tmp_path / "b"), atol=2e-4, rtol=0)

    monkeypatch.setattr(
        JointModel,
        "forward",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    with pytest.raises(MultistillError, match=r"train\.batch_frames"):
        run(task, tmp_path / "c")


@pytest.mark.parametrize("kind", ["last", "lora", "adapter"])
def test_an_exported_model_gives_the_outputs_of_the_trained_one(
    joint_corpus: Corpus, tmp_path: Path, kind: str
) -> None:
    train = {"kind": kind, "layers": 2, "learning_rate": 1e-2}
    task = make_joint_task(joint_corpus, train, epochs=2)
    data = TrainingData.open(task)
    list(fit(task, state_dir=tmp_path / "state", data=data, device="cpu"))
    export(task, data, tmp_path / "state", tmp_path)
    config = read_model_config(tmp_path)
    entry = config["encoders"]["speech"]["training"]
    assert (entry["kind"], entry["revision"]) == (kind, task.encoders["speech"].revision)
    assert (tmp_path / "encoder.safetensors").stat().st_size > 0
    model = load_model(tmp_path)
    assert isinstance(model, JointModel) and not model.training
    torch.manual_seed(5)  # what an encoder draws is overwritten
    again = build(task)
    load_trained_state(again, best_weights(tmp_path / "state")[0])
    ids = data.valid.ids
    loaded, trained = (predict(each, data.store, ids, "cpu").logits for each in (model, again))
    np.testing.assert_array_equal(loaded, trained)
    fitted = fit_temperature(log_probabilities(softmax(loaded)), data.valid.labels)
    assert config["temperature"] == pytest.approx(fitted) and config["dtype"] == data.store.dtype
    untrained = predict(build(task), data.store, ids, "cpu").logits
    assert not np.allclose(loaded, untrained)


def test_a_model_may_leave_the_encoder_as_it_is(joint_corpus: Corpus, tmp_path: Path) -> None:
    task = make_joint_task(joint_corpus, epochs=2, spec={"train_encoder": False})
    data = TrainingData.open(task)
    reports = list(fit(task, state_dir=tmp_path / "state", data=data, device="cpu"))
    assert losses(reports)[-1] < losses(reports)[0]
    assert not encoder_weights(tmp_path / "state")
    export(task, data, tmp_path / "state", tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()
    model = load_model(tmp_path)
    assert isinstance(model, JointModel)
    assert count_parameters(model) == count_parameters(model.head)
    assert len(predict(model, data.store, data.valid.ids, "cpu").logits) == len(data.valid)


def test_the_head_is_standardised_by_the_states_before_training(
    joint_corpus: Corpus, tmp_path: Path
) -> None:
    task = make_joint_task(joint_corpus, {"kind": "last-2", "learning_rate": 1e-2}, epochs=1)
    run(task, tmp_path)
    data = TrainingData.open(task)
    encoder = build(task).eval().encoders["speech"]
    states = []
    for name in data.part:
        audio = torch.from_numpy(np.array(data.store.audio(name)))[None]
        with torch.no_grad():
            states.append(encoder(audio, torch.ones(audio.shape[:2], dtype=torch.bool))[0][0])
    tensors, _ = best_weights(tmp_path)
    centre = tensors["head.standardize.audio.centre"]
    mean = torch.cat(states).double().mean(dim=0)
    expected = mean if task.spec.standardize != "global" else mean.mean().expand(len(mean))
    torch.testing.assert_close(centre.double(), expected, atol=1e-5, rtol=1e-5)


def test_tasks_survive_a_round_trip_through_json(joint_corpus: Corpus) -> None:
    task = make_joint_task(joint_corpus)
    assert TrainingTask.from_dict(task.to_dict()) == task
    other = make_joint_task(joint_corpus, {"kind": "last-2", "learning_rate": 1e-3})
    assert task.identity() != other.identity()
    assert replace(task, name="other").identity() == task.identity()


SLIM = {"encoder_layers": 2, "encoder_heads": 1, "encoder_feedforward": 9}


@pytest.fixture(scope="module")
def of_waves(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_input_corpus(tmp_path_factory.mktemp("waves"), "full", "none")


def slimmed_task(corpus: Corpus, **settings: Any) -> TrainingTask:
    return make_joint_task(
        corpus, {"kind": "full", "learning_rate": 1e-2}, SLIM, max_frames=20, **settings
    )


def test_a_slimmed_encoder_trains_resumes_and_needs_no_base(
    of_waves: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(of_waves[1].parent, folder)
    corpus = (folder / of_waves[0].name, folder / of_waves[1].name)
    info = (corpus[1] / "features.json").read_text(encoding="utf-8")
    moved = info.replace(str(of_waves[1].parent), str(folder))
    (corpus[1] / "features.json").write_text(moved, encoding="utf-8")
    task = slimmed_task(corpus, epochs=4)
    data = TrainingData.open(task)
    reports = list(fit(task, state_dir=tmp_path / "a", data=data, device="cpu"))
    assert losses(reports)[-1] < losses(reports)[0]
    for _, _ in zip(range(2), fit(task, state_dir=tmp_path / "b", device="cpu"), strict=False):
        pass
    resumed = run(task, tmp_path / "b")
    assert losses(reports)[-len(resumed) :] == losses(resumed)
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))

    export(task, data, tmp_path / "a", tmp_path / "model")
    shutil.rmtree(folder / "wav2vec2")
    loaded = load_model(tmp_path / "model")
    kept = trained_state(loaded)
    for name, tensor in best_weights(tmp_path / "a")[0].items():
        assert torch.equal(kept[name], tensor), name
    expected = trained_parameters(loaded, task)
    config = read_model_config(tmp_path / "model")
    assert config["training"]["trained_parameters"] == expected
    quantize(tmp_path / "model", tmp_path / "int8")
    ids = data.valid.ids
    found = predict(loaded, data.store, ids, "cpu", 20).logits
    rounded = predict(load_model(tmp_path / "int8"), data.store, ids, "cpu", 20).logits
    np.testing.assert_allclose(found, rounded, atol=0.1)
    config["encoders"]["speech"]["training"]["architecture"]["settings"]["hidden_size"] = "wide"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MultistillError, match=r"config\.json is damaged"):
        load_model(tmp_path / "model")


def test_a_slimmed_encoder_learns_alike_from_several_workers(
    of_waves: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = slimmed_task(of_waves, epochs=2, batch_size=71)
    assert_alike_from_two_workers(task, tmp_path, monkeypatch)


def test_sizes_of_a_slimmed_encoder_can_be_searched(of_waves: Corpus) -> None:
    task = slimmed_task(of_waves)
    other = apply(task, {"model.encoder_layers": 1, "model.encoder_heads": 2})
    counts = [count_parameters(build(each)) for each in (task, other)]
    assert counts[0] != counts[1]
    assert task.identity() != other.identity()
    assert TrainingTask.from_dict(other.to_dict()) == other
    with pytest.raises(UsageError, match="train: full"):
        make_joint_task(of_waves, {"kind": "lora"}, SLIM)
    with pytest.raises(UsageError, match="train: full"):
        replace(task, encoders={})
