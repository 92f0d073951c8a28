"""Model folders that predict recordings: untrained heads over the states of small real encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multistill.config import FeaturesConfig
from multistill.encoders import side_by_side
from multistill.encoders.registry import load_text
from multistill.encoders.source import EncoderSource, Section, trained_encoders
from multistill.features.identity import resolved_weights
from multistill.models.files import ModelInfo, save_model
from multistill.models.joint import Model, build_model
from multistill.models.network_fields import COMMON, NETWORK_USES
from multistill.models.presets import PRESETS, resolve

SMALL = {"width": 16, "heads": 2, "layers": 1, "feedforward": 16, "classifier": 16}
LABELS = ("happy", "sad", "angry", "neutral", "surprise", "fear", "disgust")


def save_predictor(
    folder: Path,
    preset: str = "small-student",
    features: Mapping[str, Any] | None = None,
    *,
    spec: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    max_frames: int | None = None,
) -> Path:
    """A model folder as `export` writes it, with random weights large enough to decide.

    Args:
        features: of the job; default: log-mel and the untrained text encoder.
        spec: fields of the model besides small widths, which other networks than `head` leave out.
    """
    config = FeaturesConfig.model_validate(features or {})
    weights, cpu = resolved_weights(config), torch.device("cpu")
    speech = side_by_side.load(config.speech, weights, cpu).info
    text = load_text(config.text, weights["text"], cpu).info
    settings = config.identity()
    encoders = {
        "speech": {**speech.to_dict(), "settings": settings["speech"]},
        "text": {**text.to_dict(), "settings": settings["text"]},
    }
    trained = trained_encoders(config, encoders)
    head = random_head(preset, speech.dim, text.dim, spec or {}, trained)
    info = ModelInfo(
        "student",
        LABELS if head.spec.num_classes else (),
        encoders=encoders,
        dtype=config.dtype,
        temperature=temperature,
        max_frames=max_frames,
        training={"name": "case"},
        trained=trained,
    )
    save_model(head, folder, info)
    return folder


def random_head(
    preset: str,
    audio_dim: int,
    text_dim: int,
    spec: Mapping[str, Any],
    trained: Mapping[Section, EncoderSource],
) -> Model:
    torch.manual_seed(0)
    encoders = {name: source.load() for name, source in trained.items()}
    use = NETWORK_USES.get(PRESETS[preset].network)
    small = {name: size for name, size in SMALL.items() if use is None or name in COMMON | use.uses}
    head = build_model(resolve(preset, {**small, **spec}), audio_dim, text_dim, encoders)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return head.eval()


def speech_like(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise with a moving pitch, [n] float32 within -1 and 1."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    pitch = 150 + 40 * np.sin(2 * np.pi * (0.7 + 0.1 * seed) * time)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + noise).astype(np.float32)
