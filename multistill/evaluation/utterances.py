"""The clips of a split that can be scored, as arrays, and label statistics of training."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multistill.corpora.manifest import (
    MANIFEST,
    UNLABELLED,
    classes_of,
    dimension_array,
    has_class,
    label_arrays,
)
from multistill.corpora.text import normal_text
from multistill.damaged import read_table
from multistill.errors import MultistillError
from multistill.typing import DoubleArray, IntArray

COLUMNS = ["utterance_id", "corpus", "label", "label_soft", "session", "speaker", "group", "gender"]
COLUMNS += ["age", "style", "duration_s", "text"]


@dataclass(frozen=True)
class Utterances:
    """Utterances of one split in manifest order; those without features are only counted."""

    classes: tuple[str, ...]
    ids: list[str]
    truth: IntArray
    """Class index [N], -1 where the votes tie, and for a clip without any class."""
    shares: DoubleArray
    """Vote shares [N, C], zero for a clip without any class."""
    sessions: list[str]
    speakers: list[str]
    groups: list[str]
    """What the split keeps together (`multistill.corpora.groups`)."""
    corpora: list[str]
    genders: list[str | None]
    ages: list[float | None]
    """Years."""
    styles: list[str | None]
    durations: DoubleArray
    """Seconds [N]."""
    texts: list[str]
    dimensions: DoubleArray
    """Values [N, D] of the dimensions that were asked for, NaN where there is none."""
    without_features: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: IntArray) -> Utterances:
        """Some of the utterances."""
        taken: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                taken[name] = value[rows]
            elif isinstance(value, list):
                taken[name] = [value[row] for row in rows]
        return replace(self, **taken)

    @classmethod
    def joined(cls, parts: Sequence[Utterances]) -> Utterances:
        """The utterances of several parts, in their order."""
        joined: dict[str, Any] = {"classes": parts[0].classes}
        for field in fields(cls)[1:]:
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], np.ndarray):
                joined[field.name] = np.concatenate(values)
            else:
                joined[field.name] = sum(values[1:], values[0])
        return cls(**joined)


@dataclass(frozen=True)
class Majority:
    """What the training part alone says of each test clip [N], of its own fold.

    Attributes:
        label: the most frequent class.
        prior: mean vote shares [N, C].
        seen: whether the clip's transcript is also in training.
        share: mean share of the most frequent class over the folds.
    """

    label: IntArray
    prior: DoubleArray
    seen: npt.NDArray[np.bool_]
    share: float


@dataclass(frozen=True)
class TrainingStatistics:
    """Label statistics of the training split, for the baselines, and transcripts, for slices.

    Transcripts of corpora without labels count as known: students read them.
    """

    counts: IntArray
    """Clips per class [C]."""
    prior: DoubleArray
    """Mean vote shares [C]."""
    texts: frozenset[str]

    @property
    def majority(self) -> int:
        return int(self.counts.argmax())


def majority_of(test: Utterances, training: TrainingStatistics) -> Majority:
    """The majority baseline of test clips whose models have this training part."""
    return Majority(
        label=np.full(len(test), training.majority, np.int64),
        prior=np.tile(training.prior, (len(test), 1)),
        seen=np.array([text in training.texts for text in test.texts], bool),
        share=float(training.counts.max() / training.counts.sum()),
    )


def _read_split(manifest: Path, split: str, columns: list[str]) -> pa.Table:
    return read_table(manifest / MANIFEST, columns=columns, filters=[("split", "=", split)])


def read_utterances(
    manifest: Path, split: str, available: Container[str], dimensions: Sequence[str] = ()
) -> Utterances:
    """Utterances of `split` that have features.

    Args:
        manifest: folder of the manifest.
        available: ids that have features (a feature store).
        dimensions: names of those that are read.
    """
    table = _read_split(manifest, split, [*COLUMNS, *dimensions])
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
        corpora=table["corpus"].to_pylist(),
        genders=table["gender"].to_pylist(),
        ages=table["age"].to_pylist(),
        styles=table["style"].to_pylist(),
        durations=table["duration_s"].to_numpy(),
        texts=[normal_text(text or "") for text in table["text"].to_pylist()],
        dimensions=dimension_array(table, dimensions).astype(np.float64),
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
    heard = pa.concat_tables([table.select(["text"]), _read_split(manifest, UNLABELLED, ["text"])])
    texts = {normal_text(text or "") for text in heard["text"].to_pylist()}
    prior = shares[has_class(shares)].astype(np.float64).mean(axis=0)
    return TrainingStatistics(counts, prior, frozenset(texts - {""}))
