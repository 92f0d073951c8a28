"""The running average of the weights: its values, and what a training does with it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, losses, make_task, run, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.inference.predict import predict_logits
from multistill.models.build import EmotionModel, build
from multistill.models.presets import resolve
from multistill.training.averaging import WeightAverage
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.objective import validation_metrics

SMALL = {"width": 8, "heads": 1, "feedforward": 8, "classifier": 8, "layers": 1}


def vector(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def walk(model: EmotionModel, steps: int) -> list[EmotionModel]:
    """Copies of the model with other weights, as after each of several optimizer steps."""
    torch.manual_seed(steps)
    models = []
    for _ in range(steps):
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.data.copy_(torch.randn_like(parameter))
        models.append(other)
    return models


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.floats(0.1, 15.0))
def test_the_average_is_a_mean_at_first_and_then_forgets_with_its_window(
    steps: int, window: float
) -> None:
    model = build(resolve("small-student", SMALL), 4, 4)
    average = WeightAverage(model, window)
    trained = walk(model, steps)
    expected = torch.zeros_like(vector(model))
    for step, current in enumerate(trained, start=1):
        average.update(current)
        expected += (vector(current) - expected) / min(step, max(1.0, window))
    torch.testing.assert_close(vector(average.model), expected, atol=1e-5, rtol=1e-4)
    if steps <= window:
        mean = torch.stack([vector(current) for current in trained]).mean(dim=0)
        torch.testing.assert_close(vector(average.model), mean, atol=1e-5, rtol=1e-4)
    elif window <= 1:
        torch.testing.assert_close(vector(average.model), vector(trained[-1]))


@given(st.integers(1, 8), st.integers(0, 8))
@settings(max_examples=10, deadline=None)
def test_a_continued_average_equals_an_uninterrupted_one(before: int, after: int) -> None:
    model = build(resolve("small-student", SMALL), 4, 4)
    trained = walk(model, before + after)
    whole, first, second = (WeightAverage(model, 5.0) for _ in range(3))
    for current in trained:
        whole.update(current)
    for current in trained[:before]:
        first.update(current)
    second.load(first.model.state_dict(), before)
    for current in trained[before:]:
        second.update(current)
    assert torch.equal(vector(second.model), vector(whole.model))


def test_the_trained_weights_are_those_of_a_training_without_an_average(corpus, tmp_path):
    plain = run(make_task(corpus), tmp_path / "plain")
    averaged = run(make_task(corpus, average_epochs=2.0), tmp_path / "averaged")
    assert losses(averaged) == losses(plain)
    assert losses(averaged, "valid_loss") != losses(plain, "valid_loss")
    assert not torch.equal(weights(tmp_path / "averaged"), weights(tmp_path / "plain"))


def test_an_average_over_at_most_one_step_is_the_weights_themselves(corpus, tmp_path):
    plain = run(make_task(corpus), tmp_path / "plain")
    averaged = run(make_task(corpus, average_epochs=0.1), tmp_path / "averaged")
    assert losses(averaged, "valid_loss") == losses(plain, "valid_loss")
    assert torch.equal(weights(tmp_path / "averaged"), weights(tmp_path / "plain"))


def test_the_exported_weights_are_those_that_were_validated(corpus, tmp_path):
    task = make_task(corpus, average_epochs=1.5)
    reports = run(task, tmp_path)
    tensors, progress = best_weights(tmp_path)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    model.load_state_dict(tensors)
    data = TrainingData.open(task)
    logits = predict_logits(model, data.store, data.valid.ids, "cpu")
    metrics = validation_metrics(task, logits, data.valid.dimensions, data.valid)
    best = reports[progress.best_epoch - 1].metrics
    assert metrics["loss"] == pytest.approx(best["valid_loss"], abs=1e-5)
    assert metrics["macro_f1"] == pytest.approx(best["valid_macro_f1"], abs=1e-6)


def test_buffers_are_those_of_the_model(corpus, tmp_path):
    """The training statistics of the states are buffers."""
    task = make_task(corpus, epochs=1, average_epochs=1.0)
    task = replace(task, spec=replace(task.spec, standardize="dimension"))
    plain = replace(task, train=task.with_train(average_epochs=0.0).train)
    run(task, tmp_path / "averaged")
    run(plain, tmp_path / "plain")
    averaged, single = (best_weights(tmp_path / name)[0] for name in ("averaged", "plain"))
    names = [n for n, _ in build(task.spec, AUDIO_DIM, TEXT_DIM).named_buffers() if n in single]
    assert names
    assert all(torch.equal(averaged[name], single[name]) for name in names)
