"""Encoder states for the tests of models and distillation: padded batches and a feature store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer

AUDIO_DIM, TEXT_DIM = 5, 3


def random_states(lengths: Sequence[int], dim: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random states [B, T, dim] with NaN in the padding, so that reading it shows, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max([1, *lengths])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    values = torch.randn(len(lengths), width, dim, generator=generator)
    return values.masked_fill(~mask[:, :, None], math.nan), mask


def make_store(
    folder: Path, lengths: Sequence[tuple[int, int]], seed: int = 0, label_axis: Sequence[int] = ()
) -> FeatureStore:
    """Utterances u0, u1, ... of (frames, tokens); `label_axis` shifts one value of each state."""
    random = np.random.default_rng(seed)
    clips = []
    for row, (frames, tokens) in enumerate(lengths):
        audio = random.normal(size=(frames, AUDIO_DIM)).astype(np.float32)
        text = random.normal(size=(tokens, TEXT_DIM)).astype(np.float32)
        if label_axis:
            audio[:, label_axis[row] % AUDIO_DIM] += 3
            text[:, label_axis[row] % TEXT_DIM] += 3
        clips.append(Clip(f"u{row}", audio, text))
    with shard_writer(folder, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        assert writer.append(clips) == []
    marker = read_marker(folder, 0)
    assert marker is not None
    finish_store(
        folder, [marker], {"dtype": "float32", "audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM}
    )
    return FeatureStore(folder)
