"""The clips of a split that can be scored, as arrays, and what training knew of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from multistill.config import CLASSES
from multistill.corpora.manifest import MANIFEST
from multistill.corpora.text import normal_text
from multistill.errors import MultistillError
from multistill.typing import DoubleArray, IntArray


@dataclass(frozen=True)
class Utterances:
    """Utterances of one split, in manifest order; those without features are only counted."""

    ids: list[str]
    truth: IntArray
    """Winning class [N], -1 where the votes tie."""
    shares: DoubleArray
    """Vote shares [N, 7]."""
    sessions: list[str]
    speakers: list[str]
    genders: list[str | None]
    texts: list[str]
    durations: DoubleArray
    without_features: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Training:
    """What the training split says without a model: class counts, mean shares, transcripts."""

    counts: IntArray
    prior: DoubleArray
    texts: frozenset[str]

    @property
    def majority(self) -> int:
        return int(self.counts.argmax())


def _split(manifest: Path, split: str, columns: list[str]) -> pa.Table:
    return pq.read_table(manifest / MANIFEST, columns=columns, filters=[("split", "=", split)])


def _winners(column: pa.ChunkedArray) -> IntArray:
    found = pc.index_in(column.combine_chunks(), value_set=pa.array(CLASSES))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _shares(column: pa.ChunkedArray) -> DoubleArray:
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float64).reshape(-1, len(CLASSES))


def read_utterances(manifest: Path, split: str, available: Container[str]) -> Utterances:
    """Utterances of `split` whose features exist.

    Args:
        manifest: folder of the manifest.
        available: ids that have features (a feature store).
    """
    columns = [
        "utterance_id",
        "label",
        "label_soft",
        "session",
        "speaker",
        "gender",
        "text",
        "duration_s",
    ]
    table = _split(manifest, split, columns)
    kept = pa.array([name in available for name in table["utterance_id"].to_pylist()], pa.bool_())
    before = table.num_rows
    table = table.filter(kept)
    return Utterances(
        ids=table["utterance_id"].to_pylist(),
        truth=_winners(table["label"]),
        shares=_shares(table["label_soft"]),
        sessions=table["session"].to_pylist(),
        speakers=table["speaker"].to_pylist(),
        genders=table["gender"].to_pylist(),
        texts=[normal_text(text or "") for text in table["text"].to_pylist()],
        durations=table["duration_s"].to_numpy().astype(np.float64),
        without_features=before - table.num_rows,
    )


def read_training(manifest: Path) -> Training:
    """Class counts, mean shares and transcripts of the training split.

    Raises:
        MultistillError: the training split has no clip with a winning class.
    """
    table = _split(manifest, "train", ["label", "label_soft", "text"])
    truth = _winners(table["label"])
    counts = np.bincount(truth[truth >= 0], minlength=len(CLASSES))
    if not counts.sum():
        raise MultistillError(
            f"{manifest / MANIFEST}: no training clip has a winning class, so there is no "
            "majority baseline; check the labels and `split` in the job file"
        )
    texts = {normal_text(text or "") for text in table["text"].to_pylist()}
    return Training(counts, _shares(table["label_soft"]).mean(axis=0), frozenset(texts - {""}))
