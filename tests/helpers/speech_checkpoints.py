"""Tiny speech checkpoints in the format of transformers, of kinds that are no wav2vec2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
