"""Exported graphs make the states of the feature store and the distributions of `Predictor`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exported_clips import RATE, waves
from helpers.predictor_case import LABELS, save_predictor, speech_like

from multistill import Predictor
from multistill.config import FeaturesConfig
from multistill.encoders.speech import LogMel
from multistill.export.graph import HeadGraph, LogMelStates, SamplesGraph
from multistill.features.decode import decode_array
from multistill.features.dtypes import Dtype
from multistill.features.in_memory import StatesInMemory, encode_clip
from multistill.models.build import EmotionModel
from multistill.models.files import ModelInfo, Output, load_model, read_model_config, save_model

STEP = {"float32": 0.0, "float16": 2**-9, "bfloat16": 2**-6, "int8": 0.04}
"""Of the stored types, at the size of states: a rounding that falls the other way."""


def stored(wave: np.ndarray, config: FeaturesConfig) -> np.ndarray:
    """States [T, 80] that the store has of a clip."""
    speech = config.speech
    limits = {"max_seconds": speech.max_seconds, "long_clips": speech.long_clips}
    samples = decode_array(wave, RATE, **limits).samples
    store = StatesInMemory(config.dtype, 80, 0)
    states = encode_clip(samples, LogMel(), speech, config.batch_seconds)
    store.add("clip", states, np.zeros((0, 0), np.float32))
    return next(store.each("audio", ["clip"])).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_states_are_those_of_the_store(dtype: Dtype) -> None:
    config = FeaturesConfig(dtype=dtype)
    front = LogMelStates(config.speech, dtype)
    clips = [0.2 + each for each in waves(12)]  # a constant part has to go
    lengths = torch.tensor([len(each) for each in clips])
    padded = np.full((len(clips), int(lengths.max())), 7.0, np.float32)
    for row, each in enumerate(clips):
        padded[row, : len(each)] = each
    states, mask = front(torch.from_numpy(padded), lengths)
    for row, each in enumerate(clips):
        wanted = stored(each, config)
        found = states[row][mask[row]].numpy()
        assert found.shape == wanted.shape
        difference = np.abs(found - wanted)
        assert difference.max() <= 1e-4 + STEP[dtype]
        assert np.mean(difference > 1e-4) < 0.01
    assert not states[~mask].any()


def test_what_is_cut_in_training_is_cut(dtype: Dtype = "float32") -> None:
    config = FeaturesConfig.model_validate(
        {"speech": {"model": "log-mel", "max_seconds": 1.5}, "dtype": dtype}
    )
    wave = speech_like(2.0)
    wave[24_000:] *= 30  # would change level and mean
    states, mask = LogMelStates(config.speech, dtype)(
        torch.from_numpy(wave)[None], torch.tensor([len(wave)])
    )
    np.testing.assert_allclose(states[0][mask[0]].numpy(), stored(wave, config), atol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 399])
def test_a_clip_without_a_frame_has_no_states(length: int) -> None:
    front = LogMelStates(FeaturesConfig().speech, "float32")
    states, mask = front(torch.from_numpy(speech_like(0.1))[None], torch.tensor([length]))
    assert not mask.any() and not states.any()


@pytest.mark.parametrize("temperature", [None, 0.5, 3.0])
@pytest.mark.parametrize("output", ["logits", "shares", "one-vs-rest"])
def test_distributions_are_those_of_the_predictor(
    output: Output, temperature: float | None, tmp_path: Path
) -> None:
    source = save_predictor(tmp_path / "source", "light-student-s")
    config, head = read_model_config(source), load_model(source)
    assert isinstance(head, EmotionModel)
    with torch.no_grad():
        for each in head.parameters():
            each.mul_(3.0)  # so that some probabilities are below the least one that is kept
    info = ModelInfo("student", LABELS, output, None, config["encoders"], "float16", temperature)
    save_model(head, tmp_path / "model", info)
    config = read_model_config(tmp_path / "model")
    states = LogMelStates(FeaturesConfig().speech, "float16")
    graph = SamplesGraph(states, HeadGraph(head, config, temperature or 1.0)).eval()
    predictor = Predictor.load(tmp_path / "model", "cpu")
    for clip in waves(6):
        with torch.inference_mode():
            found = graph(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
        wanted = list(predictor.predict_samples(clip).distribution.values())
        np.testing.assert_allclose(found["distribution"][0].numpy(), wanted, atol=1e-4)
