"""A corpus whose store keeps what trained encoders read, and tasks that train them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from helpers.training_corpus import AUDIO_DIM, make_corpus, make_task
from multistill.config import FeaturesConfig
from multistill.encoders.registry import resolve_speech
from multistill.encoders.source import trained_encoders
from multistill.training.task import TrainingTask

LAYERS = 3


def save_wav2vec2(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A checkpoint in Hugging Face format whose states are as wide as those of `make_corpus`."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        **{
            "hidden_size": AUDIO_DIM,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "conv_dim": (8, 8),
            "conv_kernel": (10, 3),
            "conv_stride": (160, 2),
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "hidden_dropout": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Wav2Vec2Model(config).save_pretrained(folder)
    return folder


def make_joint_corpus(folder: Path, train: Any = "last-2", **settings: Any) -> tuple[Path, Path]:
    """Manifest and store as of `make_corpus`: its audio states are those below the trained layers.

    Args:
        train: `features.speech.train`.
        settings: of the checkpoint.
    """
    model = save_wav2vec2(folder / "wav2vec2", **settings)
    manifest, store = make_corpus(folder)
    config = FeaturesConfig.model_validate({"speech": {"model": str(model), "train": train}})
    info = json.loads((store / "features.json").read_text(encoding="utf-8"))
    info["settings"] = config.model_dump(mode="json")
    info["speech"]["revision"] = resolve_speech(config.speech)
    (store / "features.json").write_text(json.dumps(info), encoding="utf-8")
    return manifest, store


def make_joint_task(
    corpus: tuple[Path, Path], train: Any = None, spec: Any = None, **settings: Any
) -> TrainingTask:
    """A student on audio that trains the encoder with it.

    Args:
        train: `features.speech.train`; default: that of the store.
        spec: fields of the model's.
        settings: of the training.
    """
    info = json.loads((corpus[1] / "features.json").read_text(encoding="utf-8"))
    config = info["settings"]
    if train is not None:
        config["speech"]["train"] = train
    task = make_task(corpus, **settings)
    return replace(
        task,
        spec=replace(task.spec, modality="audio", **(spec or {})),
        encoders=trained_encoders(FeaturesConfig.model_validate(config), info),
    )
