"""A small learnable corpus for the training tests: a manifest and a feature store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import CLASSES
from multistill.features.store import Clip, finish_store, read_marker, shard_writer
from multistill.models.presets import resolve
from multistill.training.task import TrainingTask

AUDIO_DIM, TEXT_DIM = 12, 8


def make_corpus(
    folder: Path, rows: int = 90, *, broken: int | None = None, quarantined: int = 2
) -> tuple[Path, Path]:
    """Manifest and store of `rows` utterances whose states point at their class.

    Args:
        broken: a training row whose audio holds a NaN.
        quarantined: rows at the end that the store lacks.
    """
    random = np.random.default_rng(7)
    directions = random.normal(size=(len(CLASSES), AUDIO_DIM + TEXT_DIM)).astype(np.float32)
    columns = ("utterance_id", "session", "speaker", "dialogue", "turn", "label", "label_soft")
    table: dict[str, list[Any]] = {name: [] for name in (*columns, "split", "fold")}
    clips = []
    for row in range(rows):
        label = int(random.integers(0, 4))
        tied = row % 17 == 0
        shares = np.full(len(CLASSES), 0.02, np.float32)
        shares[label] += 0.86
        if tied:
            shares[:] = 0
            shares[[0, label or 1]] = 0.5
        session = row % 10
        split = "test" if session == 9 else "valid" if session == 8 else "train"
        name = f"utt-{row:03d}"
        values = {
            "utterance_id": name,
            "session": f"s{session}",
            "speaker": f"p{session}",
            "dialogue": f"s{session}",
            "turn": row // 10,
            "label": None if tied else CLASSES[label],
            "label_soft": shares.tolist(),
            "split": split,
            "fold": -1 if split == "test" else session % 4,
        }
        for key, value in values.items():
            table[key].append(value)
        frames, tokens = int(random.integers(5, 40)), int(random.integers(0, 7))
        audio = random.normal(size=(frames, AUDIO_DIM)).astype(np.float32)
        text = random.normal(size=(tokens, TEXT_DIM)).astype(np.float32)
        audio += directions[label, :AUDIO_DIM]
        text += directions[label, AUDIO_DIM:]
        if row == broken:
            audio[0, 0] = np.nan
        clips.append(Clip(name, audio, text))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.parquet"
    types = {"label_soft": pa.list_(pa.float32(), 7), "fold": pa.int32(), "turn": pa.int32()}
    arrays = {key: pa.array(value, types.get(key)) for key, value in table.items()}
    pq.write_table(pa.table(arrays), manifest)
    store = folder / "features"
    with shard_writer(store, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        writer.append(clips[: rows - quarantined])
    marker = read_marker(store, 0)
    assert marker is not None
    finish_store(
        store,
        [marker],
        {
            "dtype": "float32",
            "audio_dim": AUDIO_DIM,
            "text_dim": TEXT_DIM,
            "speech": {"name": "test-speech", "trained": False},
            "text": {"name": "test-text", "trained": False},
        },
    )
    return manifest, store


def make_task(corpus: tuple[Path, Path], name: str = "model", **train: Any) -> TrainingTask:
    """A small student without dropout, so that runs are comparable."""
    manifest, store = corpus
    spec = resolve(
        "small-student",
        {
            "width": 16,
            "heads": 2,
            "feedforward": 32,
            "classifier": 16,
            "dropout": 0.0,
            "classifier_dropout": 0.0,
            "modality_dropout": 0.0,
        },
    )
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, **train}
    return TrainingTask(
        name=name,
        spec=spec.to_dict(),
        train=settings,
        seed=3,
        manifest=str(manifest),
        features=str(store),
    )


def with_dropout(task: TrainingTask, **spec: Any) -> TrainingTask:
    changes = {"dropout": 0.2, "classifier_dropout": 0.2, "modality_dropout": 0.2, **spec}
    return replace(task, spec={**task.spec, **changes})
