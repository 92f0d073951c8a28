"""The distorted test clips of the evaluated case, with states that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from helpers.evaluation_case import AUDIO_DIM, TEXT_DIM, EvaluationCase
from multistill.evaluation.distorted_clips import CLIPS, STORE, list_clips
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer

States = Callable[[FeatureStore, str, str], tuple[np.ndarray, np.ndarray] | None]
"""Store, condition and clip to its audio and text states; None: it could not be encoded."""


def make_distorted(case: EvaluationCase, out: Path, states: States) -> Path:
    """A folder as `encode_distorted` leaves it."""
    out.mkdir(parents=True)
    list_clips([case.manifest], case.store, [1], out)
    rows = pq.read_table(out / CLIPS).to_pylist()
    clean = FeatureStore(case.store)
    with shard_writer(out / STORE, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        for row in rows:
            found = states(clean, row["condition"], row["clip"])
            if found is not None:
                writer.append([Clip(row["utterance_id"], *found)])
    marker = read_marker(out / STORE, 0)
    assert marker is not None
    info = {"dtype": "float32", "audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM}
    finish_store(out / STORE, [marker], info)
    return out


def noisy(store: FeatureStore, condition: str, clip: str) -> tuple[np.ndarray, np.ndarray]:
    """States that are further from the clean ones the worse the condition's name sounds."""
    amount = {"white-10": 4.0, "babble-10": 3.0, "text-30": 3.0, "text-missing": 0.0}
    random = np.random.default_rng(len(condition) + sum(map(ord, clip)))
    audio, text = np.array(store.audio(clip)), np.array(store.text(clip))
    scale = amount.get(condition, 0.8)
    audio += scale * random.standard_normal(audio.shape[1]).astype(np.float32)
    text += scale * random.standard_normal(text.shape[1]).astype(np.float32)
    return audio, text[:0] if condition == "text-missing" else text
