"""Whisper checkpoints: the encoder half alone, against transformers' own extractor and encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speech_checkpoints import POSITIONS, save_whisper
from transformers import (
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from multistill.config import SpeechEncoderConfig
from multistill.encoders.registry import load_speech
from multistill.encoders.whisper import SPEECH_LEVEL, WhisperStates
from multistill.typing import FloatArray

CPU = torch.device("cpu")
SECOND = 16_000


def load(folder: Path, **keys: Any) -> WhisperStates:
    encoder = load_speech(SpeechEncoderConfig(model=str(folder), **keys), None, CPU)
    assert isinstance(encoder, WhisperStates)
    return encoder


def wave(samples: int) -> FloatArray:
    """Of zero mean and unit variance, as decoding makes waves."""
    noise = np.random.default_rng(0).standard_normal(samples).cumsum()
    noise = np.diff(noise, prepend=0.0, n=1) + np.sin(np.arange(samples) / 20)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_states_are_those_of_transformers(tmp_path: Path, bands: int) -> None:
    """On a clip that fills the positions, where nothing is padded and nothing is cut."""
    model = save_whisper(tmp_path, bands=bands)
    extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=1)
    clip = wave(SECOND)
    features = extractor(clip * SPEECH_LEVEL, sampling_rate=SECOND, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.encoder(features["input_features"], output_hidden_states=True).hidden_states
    encoder = load(tmp_path, layers=[0, 1, 2], combine="concat")
    own = encoder.network.log_mel(torch.from_numpy(clip)[None])
    torch.testing.assert_close(own, features["input_features"], atol=1e-4, rtol=0)
    [states] = encoder.encode([clip])
    wanted = torch.cat(hidden, dim=-1)[0, : encoder.frames(SECOND)]
    np.testing.assert_allclose(states, wanted.numpy(), atol=1e-4)


def test_a_clip_with_silence_behind_it_is_encoded_as_transformers_pads_it(tmp_path: Path) -> None:
    """What differs without padding: attention to the silence. The input is the same."""
    model = save_whisper(tmp_path)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    clip = wave(SECOND // 2)
    padded = np.concatenate([clip, np.zeros(SECOND // 2, np.float32)])
    features = extractor(clip * SPEECH_LEVEL, sampling_rate=SECOND, return_tensors="pt")
    with torch.inference_mode():
        wanted = model.encoder(features["input_features"]).last_hidden_state[0].numpy()
    encoder = load(tmp_path)
    [states] = encoder.encode([padded])
    np.testing.assert_allclose(states, wanted[: len(states)], atol=1e-4)
    # The last frames differ: here the wave is reflected at its end, there silence follows.
    inside = slice(0, 48)
    short = encoder.network.log_mel(torch.from_numpy(clip)[None])[..., inside]
    torch.testing.assert_close(short, features["input_features"][..., inside], atol=1e-4, rtol=0)
    [alone] = encoder.encode([clip])
    assert alone.shape[0] == encoder.frames(len(clip)) < len(states)
    assert not np.allclose(alone[:20], states[:20], atol=1e-4)


@pytest.mark.parametrize("kind", [WhisperForConditionalGeneration, WhisperForAudioClassification])
def test_checkpoints_with_a_head_give_the_same_encoder_without_it(
    tmp_path: Path, kind: Callable[..., Any]
) -> None:
    model = save_whisper(tmp_path, kind)
    encoder = load(tmp_path)
    own = model.get_encoder() if kind is WhisperForConditionalGeneration else model.encoder
    assert encoder.info.params == sum(p.numel() for p in own.parameters())
    state = own.state_dict()
    for name, tensor in encoder.network.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_waves_have_the_level_that_the_checkpoint_was_trained_on(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    clip = torch.from_numpy(wave(SECOND))[None]
    plain = load(tmp_path).network.log_mel(clip)
    WhisperFeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    scaled = load(tmp_path).network.log_mel(clip)
    louder = 2 * np.log10(1 / SPEECH_LEVEL) / 4
    torch.testing.assert_close(scaled, plain + louder, atol=1e-4, rtol=0)


def test_lower_layers_need_no_layers_above_them(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    lower = load(tmp_path, layers=[1])
    assert lower.info.params < load(tmp_path).info.params
    assert len(lower.network.model.layers) == 1


def test_a_clip_beyond_the_positions_is_encoded_in_windows(tmp_path: Path) -> None:
    """Of a model whose positions are no more than the usual overlap, too."""
    save_whisper(tmp_path)
    encoder = load(tmp_path)
    clip = wave(int(3.3 * SECOND))
    [states] = encoder.encode([clip])
    assert states.shape == (encoder.frames(len(clip)), 32)
    mel = encoder.network.log_mel(torch.from_numpy(clip)[None])[..., : 2 * POSITIONS]
    with torch.inference_mode():
        first = encoder.network.model(mel).last_hidden_state[0].numpy()
    half = POSITIONS // 2
    np.testing.assert_allclose(states[:half], first[:half], atol=1e-4)
