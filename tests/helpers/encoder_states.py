"""A real feature store with known states, for the tests of models and distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multistill.features.store import Clip, FeatureStore, finish_store, read_marker, shard_writer

AUDIO_DIM, TEXT_DIM = 5, 3


def make_store(
    folder: Path, lengths: Sequence[tuple[int, int]], seed: int = 0, label_axis: Sequence[int] = ()
) -> FeatureStore:
    """Utterances u0, u1, ... of (frames, tokens); `label_axis` shifts one state value of each."""
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
