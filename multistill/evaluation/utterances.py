"""The clips of a split that can be scored, as arrays, and label statistics of training."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.corpora.manifest import MANIFEST, classes_of, label_arrays
from multistill.corpora.text import normal_text
from multistill.errors import MultistillError
from multistill.typing import DoubleArray, IntArray

COLUMNS = ["utterance_id", "label", "label_soft", "session", "speaker", "group", "gender", "text"]


@dataclass(frozen=True)
class Utterances:
    """Utterances of one split in manifest order; those without features are only counted."""

    classes: tuple[str, ...]
    ids: list[str]
    truth: IntArray
    """Class index [N], -1 where the votes tie."""
    shares: DoubleArray
    """Vote shares [N, C]."""
    sessions: list[str]
    speakers: list[str]
    groups: list[str]
    """What the split keeps together (`multistill.corpora.groups`)."""
    genders: list[str | None]
    texts: list[str]
    without_features: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TrainingStatistics:
    """Label statistics and transcripts of the training split, for the baselines and slices."""

    counts: IntArray
    """Clips per class [C]."""
    prior: DoubleArray
    """Mean vote shares [C]."""
    texts: frozenset[str]

    @property
    def majority(self) -> int:
        return int(self.counts.argmax())


def _read_split(manifest: Path, split: str, columns: list[str]) -> pa.Table:
    return pq.read_table(manifest / MANIFEST, columns=columns, filters=[("split", "=", split)])


def read_utterances(manifest: Path, split: str, available: Container[str]) -> Utterances:
    """Utterances of `split` that have features.

    Args:
        manifest: folder of the manifest.
        available: ids that have features (a feature store).
    """
    table = _read_split(manifest, split, COLUMNS)
    total = table.num_rows
    encoded = [utterance in available for utterance in table["utterance_id"].to_pylist()]
    table = table.filter(pa.array(encoded, pa.bool_()))
    truth, shares = label_arrays(table)
    return Utterances(
        classes=classes_of(table),
        ids=table["utterance_id"].to_pylist(),
        truth=truth,
        shares=shares.astype(np.float64),
        sessions=table["session"].to_pylist(),
        speakers=table["speaker"].to_pylist(),
        groups=table["group"].to_pylist(),
        genders=table["gender"].to_pylist(),
        texts=[normal_text(text or "") for text in table["text"].to_pylist()],
        without_features=total - table.num_rows,
    )


def read_training_statistics(manifest: Path) -> TrainingStatistics:
    """Class counts, mean shares and transcripts of the training split.

    Raises:
        MultistillError: the training split has no labelled clip.
    """
    table = _read_split(manifest, "train", ["label", "label_soft", "text"])
    truth, shares = label_arrays(table)
    counts = np.bincount(truth[truth >= 0], minlength=shares.shape[1])
    if not counts.sum():
        raise MultistillError(
            f"{manifest / MANIFEST}: no training clip has a label, so there is no "
            "majority baseline; check the labels and `split` in the job file"
        )
    texts = {normal_text(text or "") for text in table["text"].to_pylist()}
    prior = shares.astype(np.float64).mean(axis=0)
    return TrainingStatistics(counts, prior, frozenset(texts - {""}))
