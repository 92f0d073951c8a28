"""Tiny speech checkpoints in the format of transformers, of kinds that are no wav2vec2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, WhisperConfig, WhisperModel

POSITIONS = 50


def save_whisper(folder: Path, kind: Callable[..., Any] = WhisperModel, bands: int = 80) -> Any:
    """Save a tiny Whisper with one second of positions; returns it in eval mode."""
    torch.manual_seed(0)
    settings = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=POSITIONS,
        num_mel_bins=bands,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = kind(settings).eval()
    model.save_pretrained(folder)
    return model


def save_w2v_bert(folder: Path, **settings: Any) -> Any:
    """Save a tiny W2v-BERT with SpecAugment and layer drop on, like the published checkpoint."""
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        layerdrop=0.5,
        mask_time_prob=0.5,
        **settings,
    )
    model = Wav2Vec2BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def emotion2vec_tensors(
    width: int = 48, heads: int = 4, context: int = 2, upper: int = 3, per_layer: bool = False
) -> dict[str, torch.Tensor]:
    """Tensors of a tiny emotion2vec under their published names, drawn in the order of the names.

    Among them are the decoder's, which only pre-training uses.
    """
    audio = "modality_encoders.AUDIO."
    kernels, channels = (10, 3, 3, 3, 3, 2, 2), 32
    shapes: dict[str, tuple[int, ...]] = {
        f"{audio}extra_tokens": (1, 10, width),
        f"{audio}alibi_scale": (context + upper if per_layer else 1, 1, heads, 1, 1),
        f"{audio}decoder.proj.weight": (width, 8),
    }
    for number, kernel in enumerate(kernels):
        name = f"{audio}local_encoder.conv_layers.{number}"
        shapes[f"{name}.0.weight"] = (channels, channels if number else 1, kernel)
        shapes |= {f"{name}.2.1.{kind}": (channels,) for kind in ("weight", "bias")}
    shapes |= {f"{audio}project_features.1.{kind}": (channels,) for kind in ("weight", "bias")}
    shapes[f"{audio}project_features.2.weight"] = (width, channels)
    shapes[f"{audio}project_features.2.bias"] = (width,)
    for number in range(1, 6):
        name = f"{audio}relative_positional_encoder.{number}.0"
        shapes |= {f"{name}.weight": (width, width // 4, 19), f"{name}.bias": (width,)}
    shapes |= {f"{audio}context_encoder.norm.{kind}": (width,) for kind in ("weight", "bias")}
    blocks = [f"{audio}context_encoder.blocks.{number}" for number in range(context)]
    for block in [*blocks, *(f"blocks.{number}" for number in range(upper))]:
        for linear, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes |= {
                f"{block}.{linear}.weight": (rows, columns),
                f"{block}.{linear}.bias": (rows,),
            }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        values = generator.standard_normal(shape).astype(np.float32) * np.float32(0.3)
        around = 1.0 if "alibi" in name or (len(shape) == 1 and name.endswith("weight")) else 0.0
        tensors[name] = torch.from_numpy(values + np.float32(around))
    return tensors


def save_emotion2vec(folder: Path, heads: int = 4, **sizes: Any) -> Path:
    """Save `emotion2vec_tensors` as a converted checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(emotion2vec_tensors(heads=heads, **sizes), folder / "model.safetensors")
    layers = sizes.get("context", 2) + sizes.get("upper", 3)
    settings = {
        "model_type": "emotion2vec",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
