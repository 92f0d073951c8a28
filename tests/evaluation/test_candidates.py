"""Candidates of several models: what an ensemble needs, and what it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, Corpus, make_corpus, make_task

from multistill.evaluation.candidates import Candidate, LoadedModel, spec_of_ensemble
from multistill.features.store import FeatureStore
from multistill.inference.predict import predict_logits
from multistill.metrics.classification import softmax
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.models.presets import resolve


def test_an_ensemble_needs_the_encoders_and_layers_of_all_its_members() -> None:
    layers = {"speech_layers": (3, 6), "text_layers": (1,)}
    one = resolve("small-audio-student", {**layers, "speech_layer": 3})
    other = replace(one, speech_layer=6)
    text = resolve("small-text-student", {**layers, "text_layer": 1})
    assert spec_of_ensemble([one, one]) == one.reading()
    assert spec_of_ensemble([one, other]).layers_read == {}
    both = spec_of_ensemble([one, text])
    assert (both.reads_audio, both.reads_text) == (True, True)
    assert both.layers_read == {"speech": 3, "text": 1}


def test_an_ensemble_needs_the_speech_encoders_of_all_its_members() -> None:
    parts = [{"title": "log-mel", "width": 4}, {"title": "large", "width": 6, "layers": [2, 3]}]
    light = resolve("light-student", {"speech_parts": parts, "speech_encoder": "log-mel"})
    large = resolve("small-audio-student", {"speech_parts": parts, "speech_encoder": "large"})
    third = replace(large, speech_layer=3)
    text = resolve("small-text-student", {"speech_parts": parts})
    assert spec_of_ensemble([light, large]).encoder_read is None
    both = spec_of_ensemble([large, third])
    assert (both.encoder_read, both.layers_read) == ("large", {})
    for members in ([light, text], [text, light]):
        read = spec_of_ensemble(members)
        assert (read.modality, read.encoder_read) == ("multimodal", "log-mel")


def test_members_of_different_modalities_answer_as_the_mean_of_both(tmp_path: Path) -> None:
    corpus: Corpus = make_corpus(tmp_path / "corpus")
    folders = [tmp_path / modality for modality in ("audio", "text")]
    for folder in folders:
        spec = replace(make_task(corpus).spec, modality=folder.name)  # type: ignore[arg-type]
        save_model(build(spec, AUDIO_DIM, TEXT_DIM), folder, ModelInfo("teacher"))
    store, ids = FeatureStore(corpus[1]), ["utt-009", "utt-019"]
    candidate = Candidate("teacher", "teacher", folders)
    loaded = LoadedModel(candidate, store, corpus[0].parent, torch.device("cpu"))
    each = [softmax(predict_logits(load_model(folder), store, ids, "cpu")) for folder in folders]
    np.testing.assert_allclose(loaded.probabilities(ids), np.mean(each, axis=0), atol=1e-6)
    assert len(loaded.head_ms(ids)) == len(ids)
    encoders = {name: {"params": 100} for name in ("speech", "text")}
    described = loaded.describe(encoders)
    assert (described["modality"], described["members"]) == ("multimodal", 2)
    assert described["params_end_to_end"] == described["params_trainable"] + 200


def test_networks_of_different_modalities_make_an_ensemble() -> None:
    audio, text, both = (resolve(f"va-{name}", {}) for name in ("audio", "text", "fusion"))
    assert spec_of_ensemble([audio, text]).modality == "multimodal"
    assert spec_of_ensemble([audio, audio]).modality == "audio"
    assert spec_of_ensemble([both]).dimensions == ("valence", "arousal")
