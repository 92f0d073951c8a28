"""Training and validation data of one task: manifest rows, features and the teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multistill.corpora.manifest import (
    UNLABELLED,
    classes_of,
    dimension_array,
    has_class,
    label_arrays,
    read_manifest,
)
from multistill.distillation.files import STATES
from multistill.distillation.targets import SoftTargets, read_soft_targets, read_states
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.collate import StateReader, cut_by_padded_size
from multistill.features.copies import StoreWithCopies
from multistill.features.statistics import (
    StateStatistics,
    encoders_of,
    read_statistics,
    training_statistics,
)
from multistill.features.store import FeatureStore
from multistill.models.context import DialogueContext
from multistill.training.labelled import draw_labelled, rows_of_corpora
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray, IntArray

_COLUMNS = ["utterance_id", "corpus", "label", "label_soft", "split", "fold"]


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's states of N utterances.

    Attributes:
        states: pooled states float32 [M, D], memory-mapped, in the order of the file.
        row_index: row of `states` for each utterance [N].
        space: index of the teacher that computed the state of each utterance [N], 0 to
            `num_spaces` - 1; out-of-fold teachers have unrelated spaces.
        num_spaces: number of teachers.
        sequences: by modality, what was pooled: float16 [S, D], memory-mapped, and where each row
            of the file starts in it [M + 1]. Empty if they are not read.
    """

    states: Tensor
    row_index: IntArray
    space: IntArray
    num_spaces: int
    sequences: Mapping[str, tuple[Tensor, IntArray]] = field(default_factory=dict)

    def batch_sequences(self, rows: IntArray) -> dict[str, tuple[Tensor, Tensor]]:
        """Sequences of some utterances, float32 [b, n, D], and the length of each, int64 [b]."""
        found = {}
        for name, (states, starts) in self.sequences.items():
            first = starts[self.row_index[rows]]
            lengths = starts[self.row_index[rows] + 1] - first
            padded = states.new_zeros(len(rows), max(1, int(lengths.max())), states.shape[1])
            for row, (start, length) in enumerate(zip(first, lengths, strict=True)):
                padded[row, :length] = states[start : start + length]
            found[name] = (padded.float(), torch.from_numpy(lengths))
        return found


@dataclass(frozen=True)
class Examples:
    """Utterances of one split.

    Attributes:
        shares: vote shares [N, C], zero where there is no label or it is not given.
        labels: class index [N], -1 where the votes tie, and where there is no label or it is not
            given.
        dimensions: values [N, D] on the scale from 1 to 5, NaN where there is none or it is not
            given; D is 0 for a model without dimensions.
        lengths: sort key for batches [N]: audio frames, or tokens for a text model.
        teacher_logits, teacher_dimensions: [N, C] and [N, D], for students; the values are NaN
            where the manifest has none.
        teacher_states: for students with a loss on representations.
        label_weights: factor of the label loss [N], where some rows have no label: 0 for those,
            and N over the number of the others, so that the mean over all rows is the mean over
            those with a label. None: 1 everywhere.
        teacher_weights: factor of the teacher's loss of classes [N], likewise over the rows that
            have a label in the manifest, given or not. None: 1 everywhere.
        unlabelled: number of rows, the last ones, of corpora without labels. They have a factor
            of 0 for the label loss and of 1 for the teacher's, and do not count in N above: each
            clip weighs the same, however many of them there are.
    """

    ids: list[str]
    shares: FloatArray
    labels: IntArray
    lengths: IntArray
    dimensions: FloatArray
    teacher_logits: FloatArray | None = None
    teacher_dimensions: FloatArray | None = None
    teacher_states: TeacherStates | None = None
    label_weights: FloatArray | None = None
    teacher_weights: FloatArray | None = None
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> IntArray:
        """Rows with a label, or a tie of votes."""
        if self.label_weights is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.label_weights)

    @property
    def own(self) -> slice:
        """Rows of corpora with labels."""
        return slice(0, len(self) - self.unlabelled)

    @property
    def varies(self) -> bool:
        """Whether some dimension has two different values."""
        columns = (column[np.isfinite(column)] for column in self.dimensions.T)
        return any(len(np.unique(column)) > 1 for column in columns)

    def take(self, rows: IntArray) -> Examples:
        """Some rows, before the teacher's outputs are added."""
        ids = [self.ids[row] for row in rows]
        taken = Examples(
            ids, self.shares[rows], self.labels[rows], self.lengths[rows], self.dimensions[rows]
        )
        return taken.weigh_labels()

    def weigh_labels(self) -> Examples:
        """All rows, with `label_weights` where some have no label."""
        given = has_class(self.shares)
        if given.all():
            return self
        own = len(self) - self.unlabelled
        weights = (given * (own / max(1, given.sum()))).astype(np.float32)
        return replace(self, label_weights=weights)

    def extended(self, unlabelled: Examples) -> Examples:
        """All rows and behind them those of corpora without labels, before the teacher's outputs
        are added."""
        both = Examples(
            ids=[*self.ids, *unlabelled.ids],
            shares=np.concatenate([self.shares, unlabelled.shares]),
            labels=np.concatenate([self.labels, unlabelled.labels]),
            lengths=np.concatenate([self.lengths, unlabelled.lengths]),
            dimensions=np.concatenate([self.dimensions, unlabelled.dimensions]),
            unlabelled=len(unlabelled),
        )
        return both.weigh_labels()

    def hide_labels(self, labelled: IntArray) -> Examples:
        """All rows, of which only `labelled` keep their label and dimensions."""
        given = np.zeros(len(self), dtype=bool)
        given[labelled] = True
        hidden = replace(
            self,
            shares=np.where(given[:, None], self.shares, np.float32(0)),
            labels=np.where(given, self.labels, -1),
            dimensions=np.where(given[:, None], self.dimensions, np.float32(np.nan)),
        )
        return hidden.weigh_labels()


@dataclass(frozen=True)
class TrainingData:
    """Training and validation data of one task; the test split is never read.

    Attributes:
        classes: in the order of labels and outputs.
        without_features: number of rows of these splits without features (quarantined clips).
        part: ids of all training utterances with features, also of those not trained on because
            their label is not given; none of corpora without labels.
        unlabelled: number of clips of corpora without labels that count in the budget of students
            and controls. Only students are trained on them.
        context: previous turns of any utterance, for models that read them.
        copies: distorted copies of the training clips, for models that read audio.
    """

    classes: tuple[str, ...]
    store: FeatureStore
    train: Examples
    valid: Examples
    without_features: int
    part: list[str]
    context: DialogueContext | None = None
    unlabelled: int = 0
    copies: StoreWithCopies | None = None

    @property
    def passes(self) -> int:
        """How often an epoch goes over `train`: for as many steps as over all clips of its part.

        So a training with few labels has the budget of one with all, and a control that of a
        student that is trained on clips without labels too.
        """
        return max(1, round((len(self.part) + self.unlabelled) / len(self.train)))

    def identity(self) -> dict[str, Any]:
        """The properties of the data that must match when a checkpoint is resumed."""
        info = self.store.info
        encoders = {
            kind: info[kind]["name"] for kind in ("speech", "text") if "name" in info.get(kind, {})
        }
        return {
            "audio_dim": self.store.audio_dim,
            "text_dim": self.store.text_dim,
            "train_rows": len(self.train),
            "copies": self.copies.count if self.copies else 0,
            **encoders,
        }

    def statistics(self, task: TrainingTask) -> StateStatistics:
        """Moments of the states: those of the task's file, or of all utterances of the part.

        They need no labels, so they do not depend on how many are given.

        Raises:
            MultistillError: the file is damaged, or of the states of other encoders.
        """
        # The task's file is of the encoders as they are: a slimmed one gives other states.
        if task.statistics is None or task.spec.slim.given:
            return training_statistics(self.store, self.part, task.encoders)
        statistics = read_statistics(Path(task.statistics))
        if statistics.encoders != encoders_of(self.store):
            raise MultistillError(
                f"the statistics in {task.statistics} are of {statistics.encoders}, and the "
                f"features are of {encoders_of(self.store)}; remove that folder and run the job "
                "again"
            )
        return statistics

    @classmethod
    def open(cls, task: TrainingTask) -> TrainingData:
        """Join the manifest, the feature store and the soft targets of a task.

        Raises:
            MultistillError: there are no training rows, or the soft targets lack some of them.
        """
        store = open_store(task.features)
        table = read_manifest(Path(task.manifest), [*_COLUMNS, *task.spec.dimensions])
        classes = classes_of(table)
        if task.spec.num_classes not in (0, len(classes)):
            raise MultistillError(
                f"the model `{task.name}` has {task.spec.num_classes} outputs, and the manifest in "
                f"{task.manifest} has {len(classes)} classes; use a model and a manifest of the "
                "same job"
            )
        split = table.column("split").to_numpy()
        selected = (split == "train") | (split == "valid")
        if task.role != "teacher":
            selected |= split == UNLABELLED
        if task.leave_out_fold is not None:
            in_fold = table.column("fold").to_numpy() == task.leave_out_fold
            selected &= (split != "train") | ~in_fold
        ids = table.column("utterance_id").to_pylist()
        stored = np.fromiter((name in store for name in ids), dtype=bool, count=len(ids))
        labels, shares = label_arrays(table)
        if task.corpora:
            corpora = table.column("corpus").to_numpy()
            selected &= rows_of_corpora(task.corpora, corpora, split, labels, task.seed)
        dimensions = dimension_array(table, task.spec.dimensions)

        def examples(name: str) -> Examples:
            rows = np.flatnonzero((split == name) & selected & stored)
            if name == UNLABELLED and not task.spec.reads_audio:
                # Without a transcript, a teacher's answer is to what this student does not read.
                rows = rows[store.text_tokens([ids[row] for row in rows]) > 0]
            split_ids = [ids[row] for row in rows]
            lengths = state_lengths(task, store, split_ids)
            found = Examples(split_ids, shares[rows], labels[rows], lengths, dimensions[rows])
            return found.weigh_labels()

        train, valid, unlabelled = map(examples, ("train", "valid", UNLABELLED))
        without_features = int((selected & ~stored).sum())
        if not len(train):
            fold = task.leave_out_fold
            outside = "" if fold is None else f" outside fold {fold}"
            raise MultistillError(
                f"`{task.name}` has no training utterance with features{outside}; "
                f"{without_features} are quarantined in {task.features}; raise the share of train "
                "(lower `split.test` or `split.valid`), or look into its quarantine.parquet"
            )
        part = train.ids
        labelled = None
        if task.label_share < 1.0:
            labelled = draw_labelled(train.labels, task.label_share, task.seed)
            train = train if task.unlabelled else train.take(labelled)
        if task.soft_targets is not None:
            train = train.extended(unlabelled) if len(unlabelled) else train
            tested = {name for name, part in zip(ids, split, strict=True) if part == "test"}
            train = _with_teacher(train, task, classes, tested)
        if labelled is not None and task.unlabelled:  # the teacher's outputs stay
            train = train.hide_labels(labelled)
        context = None
        turns = task.spec.context_turns
        if turns:
            columns = read_manifest(Path(task.manifest), ["utterance_id", "dialogue", "turn"])
            context = DialogueContext(store, columns.to_pydict(), turns)
        copies = None
        if task.copies is not None and task.spec.reads_audio:
            copies = StoreWithCopies(store, open_store(task.copies), train.ids)
        return cls(
            classes,
            store,
            train,
            valid,
            without_features,
            part,
            context,
            len(unlabelled),
            copies,
        )


def state_lengths(task: TrainingTask, store: StateReader, ids: Sequence[str]) -> IntArray:
    """Positions that a task reads of each clip, by which batches are sorted [N].

    At least 1: an empty clip or transcript still takes a masked position.
    """
    if not task.spec.reads_audio:
        lengths = store.text_tokens(ids)
    else:
        lengths = store.audio_frames(ids)
        max_frames = task.train.max_frames
        lengths = lengths if max_frames is None else np.minimum(lengths, max_frames)
    return np.maximum(lengths, 1)


def _with_teacher(
    train: Examples, task: TrainingTask, classes: tuple[str, ...], tested: Set[str]
) -> Examples:
    """Add the teacher's outputs to the training examples, before labels are hidden.

    A clip that has no class, or no value of a dimension, teaches a student nothing of it, as it
    teaches the control nothing: else the student would learn from clips that its control lacks.
    Corpora without labels are there for just that, so the teacher's word on them is all there is.

    Args:
        tested: ids of the test split, of which no file of soft targets may know.
    """
    path, ids, config = Path(task.soft_targets or ""), train.ids, task.distillation
    targets = read_soft_targets(path)
    if task.spec.num_classes == 0:
        classes = ()
    if targets.classes != classes:
        raise MultistillError(
            f"the soft targets in {path} are of the classes {', '.join(targets.classes)}, and the "
            f"manifest has {', '.join(classes)}; use soft targets and a manifest of the same job"
        )
    row_of = {name: row for row, name in enumerate(targets.ids)}
    leaked = [name for name in targets.ids if name in tested]
    if leaked:
        raise MultistillError(
            f"the soft targets in {path} have {len(leaked)} utterances of the test split (first: "
            f"{leaked[0]}), so they are of another fold or split; remove that file and run the job "
            "again"
        )
    absent = [name for name in ids if name not in row_of]
    if absent:
        raise MultistillError(
            f"the soft targets in {path} lack {len(absent)} of {len(ids)} training utterances "
            f"(first: {absent[0]}); remove that file and run the job again"
        )
    rows = np.asarray([row_of[name] for name in ids], dtype=np.int64)
    if targets.dimension_names != task.spec.dimensions:
        has, wanted = (
            ", ".join(d) or "none" for d in (targets.dimension_names, task.spec.dimensions)
        )
        raise MultistillError(
            f"the soft targets in {path} have the dimensions {has}, and the model `{task.name}` "
            f"has {wanted}; use soft targets and a model of the same job"
        )
    logits = targets.for_loss(config.loss if config else "kd")[rows]
    dimensions = targets.dimensions[rows]
    bad = np.flatnonzero(~np.isfinite(np.concatenate([logits, dimensions], axis=1)).all(axis=1))
    if len(bad):
        raise MultistillError(
            f"the soft targets in {path} are not finite for {len(bad)} utterances "
            f"(first: {ids[int(bad[0])]}); remove that file and run the job again"
        )
    taught, weights = np.isfinite(train.dimensions), train.label_weights
    if train.unlabelled:
        assert weights is not None
        weights = weights.copy()
        taught[-train.unlabelled :], weights[-train.unlabelled :] = True, 1.0
    states = None
    if config is not None and config.reads_states:
        read = task.spec.sequences if config.sequence_weight else ()
        states = _teacher_states(path, targets, rows, ids, read)
        if config.sequence_weight and not states.sequences:
            raise MultistillError(
                f"{path.with_name(STATES)} has no sequences of what `{task.name}` reads, and "
                "`distillation.sequence_weight` needs them; run a job that sets it, with a teacher "
                "that reads the same"
            )
    return replace(
        train,
        teacher_logits=logits,
        teacher_dimensions=np.where(taught, dimensions, np.float32(np.nan)),
        teacher_states=states,
        teacher_weights=weights,
    )


def _teacher_states(
    path: Path, targets: SoftTargets, rows: IntArray, ids: list[str], sequences: Sequence[str]
) -> TeacherStates:
    """States of the soft targets' `rows`, whose utterances are `ids`.

    Args:
        sequences: modalities of which the sequences are read, as far as they are there.
    """
    stored = read_states(path)
    state_index = np.full(len(targets.ids), -1, dtype=np.int64)
    state_index[stored.rows] = np.arange(len(stored.rows))
    absent = np.flatnonzero(state_index[rows] < 0)
    if len(absent):
        raise MultistillError(
            f"the teacher's states in {path.with_name(STATES)} lack {len(absent)} of "
            f"{len(ids)} training utterances (first: {ids[int(absent[0])]}); remove that file and "
            "run the job again"
        )
    spaces, space = np.unique(stored.teacher[state_index[rows]], return_inverse=True)
    return TeacherStates(
        stored.pooled,
        state_index[rows],
        space.astype(np.int64),
        len(spaces),
        {
            name: (states, np.concatenate([[0], np.cumsum(lengths)]))
            for name, (states, lengths) in stored.sequences.items()
            if name in sequences
        },
    )


def split_micro_batches(
    rows: IntArray, lengths: IntArray, count: int = 1, max_frames: int | None = None
) -> Iterator[IntArray]:
    """Split one worker's rows of a batch into micro-batches, which are computed one by one.

    Rows are sorted by length first, so that short clips are not padded to the longest.

    Args:
        lengths: of all utterances, indexed by `rows`.
        count: minimum number of micro-batches, if there are as many rows.
        max_frames: limit of padded frames (rows x longest) of a micro-batch; a single row may
            exceed it.
    """
    order = rows[np.argsort(lengths[rows], kind="stable")]
    limit = math.inf if max_frames is None else max_frames
    for part in np.array_split(order, min(count, max(1, len(order)))):
        for cut in cut_by_padded_size(limit, lengths[part]):
            yield part[cut]


def halves(micro_batches: Sequence[IntArray]) -> list[IntArray]:
    """The same rows in micro-batches of half as many."""
    return [half for rows in micro_batches for half in np.array_split(rows, 2) if len(half)]
