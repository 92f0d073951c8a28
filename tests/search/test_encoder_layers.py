"""Searching among encoder layers: a store holds several of them, a model reads one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from helpers.search_case import TASK, choice

from multistill.config import FeaturesConfig, JobConfig
from multistill.errors import JobFileError, UsageError
from multistill.models.build import build
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec
from multistill.pipeline import jobfile
from multistill.search.cost import _encoders_of, _readers
from multistill.search.space import apply, check_space
from multistill.training.task import TrainingTask

AUDIO, TEXT = 6, 4
STORED = {"speech_layers": [6, 9, 12], "text_layers": [2, -1]}


@pytest.mark.parametrize(("layer", "position"), [(6, 0), (9, 1), (12, 2)])
def test_a_model_reads_its_layer_and_no_other(layer, position):
    spec = resolve("small-student", {**STORED, "speech_layer": layer, "text_layer": -1})
    model = build(spec, 3 * AUDIO, 2 * TEXT).eval()
    single = build(resolve("small-student", {}), AUDIO, TEXT).eval()
    read = {"audio": slice(position * AUDIO, (position + 1) * AUDIO), "text": slice(TEXT, None)}
    weights = model.state_dict()
    for modality, rows in read.items():
        for buffer in ("centre", "scale"):
            name = f"standardize.{modality}.{buffer}"
            weights[name].add_(torch.rand_like(weights[name]))
            weights[name] = weights[name][rows]
    single.load_state_dict(weights)
    audio, text = torch.randn(2, 5, 3 * AUDIO), torch.randn(2, 3, 2 * TEXT)
    with torch.inference_mode():
        logits = model(audio=audio, text=text).logits
        states = {"audio": audio[..., read["audio"]], "text": text[..., read["text"]]}
        assert torch.equal(logits, single(**states).logits)


def test_a_model_without_a_layer_reads_all_layers():
    model = build(resolve("small-student", STORED), 3 * AUDIO, 2 * TEXT)
    assert model.audio_projection is not None
    assert model.audio_projection.in_features == 3 * AUDIO


def test_the_layer_survives_json_and_is_set_by_the_search():
    spec = resolve("small-student", STORED)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    task = TrainingTask.from_dict(json.loads(json.dumps(replace(TASK, spec=spec).to_dict())))
    applied = apply(task, {"model.speech_layer": 9})
    assert applied.spec.speech_layer == 9
    assert applied.spec.speech_layers == (6, 9, 12)
    assert check_space({"model.speech_layer": choice(6, 9)}) == []


def test_a_layer_that_is_not_stored_is_refused():
    with pytest.raises(UsageError, match="not among the layers"):
        resolve("small-student", {**STORED, "speech_layer": 7})
    with pytest.raises(UsageError, match="combine: concat"):
        build(resolve("small-student", {"speech_layer": 6}), AUDIO, TEXT)


def problems(job: str) -> str:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\n{job}", "t.yaml")
    return "; ".join(text for _, text in caught.value.problems)


def test_a_job_that_searches_a_layer_that_it_does_not_store_is_refused():
    space = "search: {space: {model.speech_layer: {choices: [6, 9]}}}"
    assert "layer 6 cannot be read, the store holds one state" in problems(space)
    stored = "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n"
    assert "layer 9 cannot be read, the store holds layers 1, 2" in problems(stored + space)
    ranged = "search: {space: {model.speech_layer: {low: 6, high: 12}}}"
    assert "needs `choices`" in problems(stored + ranged)


def test_losses_over_a_batch_need_trials_of_one_worker():
    messages = problems("distillation: {loss: dist}\nsearch: {workers_per_trial: 2}")
    assert "search.workers_per_trial: distillation.loss dist correlates" in messages


def test_averaged_layers_are_one_state():
    features = FeaturesConfig.model_validate(
        {"speech": {"layers": [1, 2]}, "text": {"layers": [1]}}
    )
    assert features.side_by_side() == {}
    joined = FeaturesConfig.model_validate({"speech": {"layers": [1, 2], "combine": "concat"}})
    assert joined.side_by_side() == {"speech_layers": [1, 2]}
    assert JobConfig.model_validate({"name": "t", "corpora": [{"kind": "demo"}]})


def test_encoders_are_timed_for_students_with_a_convolutional_front():
    spec = resolve("light-student", {"speech_layers": [6, 9]})
    read = {_encoders_of(reader) for reader in _readers(spec)}
    assert {"audio", "audio, speech layer 9", "text", "multimodal"} <= read


@pytest.mark.parametrize("section", ["speech", "text"])
@pytest.mark.parametrize(("layers", "most"), [(None, 2), (1, 1)])
@pytest.mark.parametrize("beyond", [False, True])
def test_more_layers_to_train_than_there_are_is_told_before_the_trials(
    section, layers, most, beyond
):
    other, modality = ("text", "audio") if section == "speech" else ("speech", "text")
    job = {
        "name": "x",
        "corpora": [{"kind": "demo"}],
        "features": {
            section: {
                "model": {"speech": "untrained-wav2vec2", "text": "untrained-electra"}[section],
                "train": {"kind": "adapter", "layers": layers},
            },
            other: {"model": {"speech": "log-mel", "text": "hashed-ngrams"}[other]},
        },
        "students": [{"name": "s", "model": {"preset": f"small-{modality}-student"}}],
        "search": {
            "space": {f"features.{section}.train.top": {"choices": sorted({1, most + beyond})}},
        },
    }
    text = yaml.safe_dump(job)
    if not beyond:
        assert jobfile.parse(text, "job.yaml").name == "x"
        return
    with pytest.raises(JobFileError) as refused:
        jobfile.parse(text, "job.yaml")
    assert len(refused.value.problems) == 1, "it is told once"
    assert f"search.space: `features.{section}.train.top`: " in str(refused.value)
    assert f"top: {most + 1}` is more than the {most} layers" in str(refused.value)
