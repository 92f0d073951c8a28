"""W2v-BERT 2.0 on a tiny checkpoint, against transformers' own extractor and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speech_checkpoints import save_w2v_bert
from transformers import SeamlessM4TFeatureExtractor

from multistill.config import SpeechEncoderConfig
from multistill.encoders.registry import load_speech
from multistill.errors import MultistillError
from multistill.typing import FloatArray

CPU = torch.device("cpu")


def load(folder: Path, **keys: Any) -> Any:
    return load_speech(SpeechEncoderConfig(model=str(folder), **keys), None, CPU)


def waves(*lengths: int) -> list[FloatArray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(length).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("samples", [16_000, 15_900, 8_123])
def test_states_are_those_of_transformers(tmp_path: Path, samples: int) -> None:
    model = save_w2v_bert(tmp_path)
    [clip] = waves(samples)
    inputs = SeamlessM4TFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(**inputs).last_hidden_state[0, inputs["attention_mask"][0].bool()]
    encoder = load(tmp_path)
    [states] = encoder.encode([clip])
    assert len(states) == encoder.frames(samples) == len(wanted)
    np.testing.assert_allclose(states, wanted.numpy(), atol=1e-5)


def test_states_do_not_depend_on_the_batch_nor_on_the_level(tmp_path: Path) -> None:
    save_w2v_bert(tmp_path)
    encoder = load(tmp_path, layers=[0, 2, -1], combine="concat")
    clips = waves(16_000, 560, 9_001, 719, 720)
    together = encoder.encode(clips)
    for clip, states in zip(clips, together, strict=True):
        [alone] = encoder.encode([clip])
        np.testing.assert_allclose(states, alone, atol=1e-5)
        assert alone.shape == (encoder.frames(len(clip)), 3 * 32)
    # So the unit variance that decoding gives every wave changes nothing.
    [quiet] = encoder.encode([clips[0] * np.float32(0.05)])
    np.testing.assert_allclose(quiet, together[0], atol=1e-3)
    assert encoder.frames(559) == 0


def test_adapter_and_layers_above_are_left_out(tmp_path: Path) -> None:
    save_w2v_bert(tmp_path / "plain")
    save_w2v_bert(tmp_path / "adapter", add_adapter=True)
    plain, lower = load(tmp_path / "plain"), load(tmp_path / "plain", layers=[1])
    adapter = load(tmp_path / "adapter")
    [clip] = waves(8_000)
    assert adapter.encode([clip])[0].shape == plain.encode([clip])[0].shape
    assert lower.info.params < plain.info.params == adapter.info.params


def test_a_model_of_other_filter_banks_is_refused(tmp_path: Path) -> None:
    save_w2v_bert(tmp_path, feature_projection_input_dim=80)
    with pytest.raises(MultistillError, match="reads 80 values a frame"):
        load(tmp_path)
