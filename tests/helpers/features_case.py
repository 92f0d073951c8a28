"""Clips, manifests, stores and tiny checkpoints for the features tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer


def tone(seconds: float, hertz: float = 220.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A tone with noise: every seed gives another clip, and none is silent."""
    samples = round(seconds * rate)
    time = np.arange(samples) / rate
    noise = np.random.default_rng(seed).normal(0, 0.05, samples)
    return (0.3 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)


def write_corpus(folder: Path, seconds: Sequence[float], texts: Sequence[str] = ()) -> list[dict]:
    """Write WAV files; returns the manifest columns that the features stage reads."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, length in enumerate(seconds):
        path = folder / f"{number:04d}.wav"
        soundfile.write(path, tone(length, 150 + 7 * (number % 40), seed=number), 16_000)
        text = texts[number % len(texts)] if texts else f"clip {number}"
        rows.append(
            {
                "utterance_id": f"c/{number:04d}",
                "audio_path": str(path),
                "text": text,
                "duration_s": length,
            }
        )
    return rows


def write_manifest_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"audio_digest": "", **row} for row in rows]), path)
    return path


def make_store(
    folder: Path, clips: Sequence[Clip], dtype: str = "float16", shard_size: int = 4
) -> FeatureStore:
    """Write a store of these clips in shards of `shard_size` clips and two record batches."""
    dims = (clips[0].audio.shape[1], clips[0].text.shape[1])
    markers = []
    for shard, start in enumerate(range(0, len(clips), shard_size)):
        in_shard = clips[start : start + shard_size]
        with shard_writer(folder, shard, dtype, *dims, {}) as writer:
            assert writer.append(in_shard[:2]) == []
            assert writer.append(in_shard[2:]) == []
        marker = read_marker(folder, shard)
        assert marker is not None
        markers.append(marker)
    finish_store(folder, markers, {"dtype": dtype, "audio_dim": dims[0], "text_dim": dims[1]})
    return FeatureStore(folder)


def random_clips(count: int, audio_dim: int = 8, text_dim: int = 4, seed: int = 0) -> list[Clip]:
    """Clips of 1 to 30 frames and 0 to 5 tokens; the scales of the channels differ widely."""
    random = np.random.default_rng(seed)
    scale = np.logspace(-2, 1.5, audio_dim)
    return [
        Clip(
            f"u{number:03d}",
            (random.normal(size=(random.integers(1, 31), audio_dim)) * scale).astype(np.float32),
            random.normal(size=(random.integers(0, 6), text_dim)).astype(np.float32),
        )
        for number in range(count)
    ]


def save_wav2vec2(folder: Path, norm: str = "layer", layers: int = 3) -> Path:
    """Save a tiny wav2vec2 with SpecAugment and dropout enabled, like published checkpoints."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    settings = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.5,
        mask_time_length=2,
        layerdrop=0.5,
        hidden_dropout=0.5,
    )
    Wav2Vec2Model(settings).save_pretrained(folder)
    return folder


def save_electra(folder: Path, layers: int = 2) -> Path:
    """Save a tiny ELECTRA and its WordPiece tokenizer."""
    from transformers import BertTokenizerFast, ElectraConfig, ElectraModel

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "나는", "좋다", "good", "day", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False)
    torch.manual_seed(0)
    settings = ElectraConfig(
        vocab_size=len(words),
        embedding_size=16,
        hidden_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    ElectraModel(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
