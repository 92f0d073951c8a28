"""emotion2vec from its published tensors, against what FunASR's own code makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speech_checkpoints import emotion2vec_tensors, save_emotion2vec
from safetensors.torch import save_file

from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.encoders.preflight import problems
from multistill.encoders.registry import load_speech
from multistill.errors import MultistillError
from multistill.typing import FloatArray

CPU = torch.device("cpu")
# Frames 0, 5 and 11, four values each, after the context encoder and after the last block, of
# funasr 1.4.16 (models/emotion2vec) with the same tensors and the same wave.
PUBLISHED: dict[tuple[int, bool], Any] = {
    (4, False): (
        [
            [0.52516, 0.16448, -2.64187, 0.08527],
            [0.58104, -0.41287, -2.18752, -0.86989],
            [1.02143, 0.29713, -2.41804, -0.07174],
        ],
        [
            [-1.07047, -0.04349, -0.45038, -0.20715],
            [-1.07176, -0.01736, -0.46337, -0.21709],
            [-1.07753, -0.02553, -0.46198, -0.21895],
        ],
    ),
    (6, True): (
        [
            [0.3782, 0.10059, -0.9478, -0.36883],
            [-0.1689, 0.19711, -1.11031, -0.57122],
            [0.30706, 0.57296, -1.35136, -0.38348],
        ],
        [
            [-2.64989, 0.7769, -0.73774, 0.28927],
            [-2.65315, 0.77828, -0.74018, 0.2858],
            [-2.6536, 0.77827, -0.74151, 0.29159],
        ],
    ),
}


def load(folder: Path, **keys: Any) -> Any:
    return load_speech(SpeechEncoderConfig(model=str(folder), **keys), None, CPU)


def wave(samples: int) -> FloatArray:
    noise = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    scaled: FloatArray = (noise - noise.mean()) / noise.std()
    return scaled


@pytest.mark.parametrize(("heads", "per_layer"), PUBLISHED)
def test_states_are_those_of_the_published_code(
    tmp_path: Path, heads: int, per_layer: bool
) -> None:
    """Heads that are no power of two, and a bias whose scale is learnt per layer, too."""
    save_emotion2vec(tmp_path, heads=heads, per_layer=per_layer)
    encoder = load(tmp_path, layers=[2, -1], combine="concat")
    [states] = encoder.encode([wave(4000)])
    assert states.shape == (encoder.frames(4000), 2 * 48) == (12, 96)
    for wanted, found in zip(PUBLISHED[heads, per_layer], np.split(states, 2, 1), strict=True):
        np.testing.assert_allclose(found[[0, 5, -1], :4], wanted, atol=1e-4)


def test_it_is_an_encoder_like_the_others(tmp_path: Path) -> None:
    save_emotion2vec(tmp_path)
    assert list(problems(FeaturesConfig.model_validate({"speech": str(tmp_path)}))) == []
    lower, whole = load(tmp_path, layers=[1]), load(tmp_path)
    assert whole.info.padding == "equal-length"
    assert lower.info.params < whole.info.params
    clips = [wave(4000), wave(4000)[::-1].copy()]
    for clip, states in zip(clips, whole.encode(clips), strict=True):
        np.testing.assert_allclose(states, whole.encode([clip])[0], atol=1e-5)
    [(_, sentence)] = problems(
        FeaturesConfig.model_validate({"speech": {"model": str(tmp_path), "layers": [6]}})
    )
    assert "it has 5 layers" in sentence
    [(_, sentence)] = problems(FeaturesConfig.model_validate({"text": str(tmp_path)}))
    assert "(emotion2vec) is a speech model" in sentence


@pytest.mark.parametrize("damage", ["missing", "other", "heads", "bytes"])
def test_tensors_of_another_network_are_refused(tmp_path: Path, damage: str) -> None:
    save_emotion2vec(tmp_path, heads=5 if damage == "heads" else 4)
    tensors, file = emotion2vec_tensors(), tmp_path / "model.safetensors"
    if damage == "missing":
        del tensors["modality_encoders.AUDIO.context_encoder.norm.weight"]
        save_file(tensors, file)
    elif damage == "other":
        tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 7)
        save_file(tensors, file)
    elif damage == "bytes":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MultistillError, match="is not built like the encoders"):
        load(tmp_path)
    shutil.rmtree(tmp_path)
    load(save_emotion2vec(tmp_path))


def test_a_folder_with_the_pickle_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"pickle")
    (tmp_path / "config.yaml").write_text("model: Emotion2vec")
    [(_, sentence)] = problems(FeaturesConfig.model_validate({"speech": str(tmp_path)}))
    assert "holds a pickled checkpoint (model.pt)" in sentence and "docs/features.md" in sentence
