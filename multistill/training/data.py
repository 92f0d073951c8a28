"""What one model trains on: manifest rows that the store holds, labels, the teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from multistill.config import CLASSES
from multistill.corpora.manifest import read_manifest
from multistill.distillation.targets import SoftTargets, read_pooled, read_soft_targets
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.collate import cut_by_padded_size
from multistill.features.store import FeatureStore
from multistill.models.context import DialogueContext
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray, IntArray

_COLUMNS = ["utterance_id", "label", "label_soft", "split", "fold"]


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's representations of N utterances.

    Attributes:
        table: float32 [M, D], mapped from a file, in the file's order.
        place: row of the table [N].
        space: whose space each lies in [N], 0 to `spaces` - 1: out-of-fold teachers have one
            each.
    """

    table: Tensor
    place: IntArray
    space: IntArray
    spaces: int


@dataclass(frozen=True)
class Rows:
    """Some utterances of a split.

    Attributes:
        shares: vote shares [N, 7].
        winner: winning class [N], -1 where the votes tie.
        lengths: what batches are sorted by [N]: audio frames, or tokens for a text model.
        teacher: the teacher's logits [N, 7], for students.
        states: the teacher's representations, for students that learn from them.
    """

    ids: list[str]
    shares: FloatArray
    winner: IntArray
    lengths: IntArray
    teacher: FloatArray | None = None
    states: TeacherStates | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TrainingData:
    """Training and validation rows of one task; the test split is never read.

    Attributes:
        missing: rows of these splits without features (quarantined clips).
        context: previous turns of any utterance, for models that read them.
    """

    store: FeatureStore
    train: Rows
    valid: Rows
    missing: int
    context: DialogueContext | None = None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been trained on: the encoders and their widths."""
        info = self.store.info
        encoders = {
            kind: info[kind]["name"] for kind in ("speech", "text") if "name" in info.get(kind, {})
        }
        return {
            "audio_dim": self.store.audio_dim,
            "text_dim": self.store.text_dim,
            "train_rows": len(self.train),
            **encoders,
        }

    @classmethod
    def open(cls, task: TrainingTask) -> TrainingData:
        """Join the manifest, the store and the soft targets of a task.

        Raises:
            MultistillError: nothing is left to train on, or the teacher lacks rows.
        """
        store = open_store(task.features)
        table = read_manifest(Path(task.manifest), _COLUMNS)
        split = table.column("split").to_numpy()
        wanted = (split == "train") | (split == "valid")
        if task.leave_out_fold is not None:
            left_out = table.column("fold").to_numpy() == task.leave_out_fold
            wanted &= (split != "train") | ~left_out
        ids = table.column("utterance_id").to_pylist()
        stored = np.fromiter((name in store for name in ids), dtype=bool, count=len(ids))
        labels = _Labels.of(table)

        def rows(which: npt.NDArray[np.bool_]) -> Rows:
            places = np.flatnonzero(which & wanted & stored)
            chosen = [ids[place] for place in places]
            return Rows(
                chosen, labels.shares[places], labels.winner[places], _lengths(task, store, chosen)
            )

        train, valid = rows(split == "train"), rows(split == "valid")
        missing = int((wanted & ~stored).sum())
        if not len(train):
            fold = task.leave_out_fold
            outside = "" if fold is None else f" outside fold {fold}"
            raise MultistillError(
                f"`{task.name}` has no training utterance with features{outside}; "
                f"{missing} are quarantined in {task.features}, see also `split` in the job file"
            )
        if task.soft_targets is not None:
            train = _taught(train, task)
        context = None
        turns = task.spec.context_turns
        if turns:
            past = read_manifest(Path(task.manifest), ["utterance_id", "dialogue", "turn"])
            context = DialogueContext(store, past.to_pydict(), turns)
        return cls(store, train, valid, missing, context)


@dataclass(frozen=True)
class _Labels:
    shares: FloatArray
    winner: IntArray

    @classmethod
    def of(cls, table: pa.Table) -> _Labels:
        flat = table.column("label_soft").combine_chunks().flatten().to_numpy()
        place = pc.index_in(table.column("label"), value_set=pa.array(CLASSES))
        return cls(
            shares=flat.astype(np.float32).reshape(-1, len(CLASSES)),
            winner=pc.fill_null(place, -1).to_numpy().astype(np.int64),
        )


def _lengths(task: TrainingTask, store: FeatureStore, ids: list[str]) -> IntArray:
    """At least 1: an empty clip or transcript still takes a masked position."""
    if not task.spec.reads_audio:
        lengths = store.text_tokens(ids)
    else:
        lengths = store.audio_frames(ids)
        most = task.train.max_frames
        lengths = lengths if most is None else np.minimum(lengths, most)
    return np.maximum(lengths, 1)


def _taught(train: Rows, task: TrainingTask) -> Rows:
    """The rows with what the task's teacher says of them."""
    path, ids, config = Path(task.soft_targets or ""), train.ids, task.distillation
    targets = read_soft_targets(path)
    place = {name: row for row, name in enumerate(targets.ids)}
    absent = [name for name in ids if name not in place]
    if absent:
        raise MultistillError(
            f"the soft targets in {path} lack {len(absent)} of {len(ids)} training utterances "
            f"(first: {absent[0]}); run the distillation stage again"
        )
    order = np.asarray([place[name] for name in ids], dtype=np.int64)
    logits = np.asarray(targets.logits, dtype=np.float32)[order]
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise MultistillError(
            f"the soft targets in {path} are not finite for {len(broken)} utterances "
            f"(first: {ids[int(broken[0])]}); train the teacher again"
        )
    reads_pooled = config is not None and config.reads_pooled
    states = _teacher_states(path, targets, order, ids) if reads_pooled else None
    return replace(train, teacher=logits, states=states)


def _teacher_states(
    path: Path, targets: SoftTargets, order: IntArray, ids: list[str]
) -> TeacherStates:
    rows, table = read_pooled(path)
    place = np.full(len(targets.ids), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    absent = np.flatnonzero(place[order] < 0)
    if len(absent):
        raise MultistillError(
            f"the teacher's representations beside {path} lack {len(absent)} of {len(ids)} "
            f"training utterances (first: {ids[int(absent[0])]}); run the distillation stage again"
        )
    spaces, space = np.unique(targets.fold[order], return_inverse=True)
    return TeacherStates(table, place[order], space.astype(np.int64), len(spaces))


def micro_batches(
    rows: IntArray, lengths: IntArray, pieces: int = 1, frames: int | None = None
) -> Iterator[IntArray]:
    """Cut one worker's part of a batch into pieces that are computed one after another.

    Rows are sorted by length first, so that short clips are not padded to the longest.

    Args:
        lengths: of all utterances, indexed by `rows`.
        pieces: at least so many pieces, where there are as many rows.
        frames: most padded frames (rows x longest) in a piece; one row always fits.
    """
    order = rows[np.argsort(lengths[rows], kind="stable")]
    limit = math.inf if frames is None else frames
    for part in np.array_split(order, min(pieces, max(1, len(order)))):
        for cut in cut_by_padded_size(limit, lengths[part]):
            yield part[cut]
