"""A corpus whose store keeps what trained encoders read, and tasks that train them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.tiny_encoders import save_text_model
from helpers.training_corpus import AUDIO_DIM, make_corpus, make_task
from multistill.config import CLASSES, FeaturesConfig
from multistill.corpora.manifest import read_manifest
from multistill.encoders.registry import load_speech, load_text, resolve_speech, resolve_text
from multistill.encoders.source import trained_encoders
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.training.task import TrainingTask

LAYERS = 3
_WORDS = ("good", "day", "bad", "night")


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


def make_input_corpus(folder: Path, speech: Any, text: Any) -> tuple[Path, Path]:
    """Manifest as of `make_corpus`, and a store of waves and token ids.

    Pitch and word tell the class. Some transcripts are empty. Neither encoder has dropout.

    Args:
        speech, text: `train` of both sections.
    """
    model, bert = save_wav2vec2(folder / "wav2vec2"), save_text_model(folder / "bert", "bert")
    settings = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (bert / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    manifest, states = make_corpus(folder)
    config = FeaturesConfig.model_validate(
        {
            "speech": {"model": str(model), "train": speech},
            "text": {"model": str(bert), "train": text},
        }
    )
    device = torch.device("cpu")
    waves = load_speech(config.speech, resolve_speech(config.speech), device)
    tokens = load_text(config.text, resolve_text(config.text), device)
    source, random = FeatureStore(states), np.random.default_rng(0)
    table = read_manifest(manifest, ["utterance_id", "label"]).to_pydict()
    labels = dict(zip(table["utterance_id"], table["label"], strict=True))
    clips = []
    for name in source.ids:
        pitch = 150.0 * (1 + CLASSES.index(labels[name] or CLASSES[0]))
        wave = np.sin(2 * np.pi * pitch * np.arange(random.integers(2_000, 9_000)) / 16_000)
        clip = waves.encode([wave.astype(np.float32)])[0]
        word = _WORDS[CLASSES.index(labels[name] or CLASSES[0]) % len(_WORDS)]
        said = word if len(source.text(name)) else ""
        clips.append(Clip(name, clip, tokens.encode([said])[0]))
    store = folder / "inputs"
    kept = {"audio": waves.info.stored, "text": tokens.info.stored}
    dims = {"audio_dim": waves.info.dim, "text_dim": tokens.info.dim}
    with shard_writer(store, 0, "float32", *dims.values(), {}, kept) as writer:
        assert not writer.append(clips)
    marker = read_marker(store, 0)
    assert marker is not None
    info = {
        "dtype": "float32",
        **dims,
        "settings": config.model_dump(mode="json"),
        "speech": waves.info.to_dict(),
        "text": tokens.info.to_dict(),
    }
    finish_store(store, [marker], info)
    return manifest, store


def make_joint_task(
    corpus: tuple[Path, Path], train: Any = None, spec: Any = None, **settings: Any
) -> TrainingTask:
    """A student, by default on audio, that trains the encoder with it.

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
    sources = trained_encoders(FeaturesConfig.model_validate(config), info)
    changed = replace(task.spec, **{"modality": "audio", **(spec or {})})
    return replace(task, spec=changed, encoders=sources)
