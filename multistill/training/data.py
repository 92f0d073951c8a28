"""Training and validation data of one task: manifest rows, features and the teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from multistill.corpora.manifest import (
    UNLABELLED,
    classes_of,
    dimension_array,
    label_arrays,
    read_manifest,
)
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.collate import StateReader, cut_by_padded_size
from multistill.features.copies import StoreWithCopies
from multistill.features.ids import Ids
from multistill.features.statistics import (
    StateStatistics,
    encoders_of,
    read_statistics,
    training_statistics,
)
from multistill.features.store import FeatureStore
from multistill.models.context import DialogueContext
from multistill.training.examples import Examples
from multistill.training.labelled import draw_labelled, rows_of_corpora
from multistill.training.task import TrainingTask
from multistill.training.teacher_outputs import with_teacher
from multistill.typing import IntArray

_COLUMNS = ["utterance_id", "label", "label_soft", "split"]


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
    part: Ids
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
        columns = [*_COLUMNS, *task.spec.dimensions]
        columns += ["fold"] if task.leave_out_fold is not None else []
        columns += ["corpus"] if task.corpora else []
        table = read_manifest(Path(task.manifest), columns)
        classes = classes_of(table)
        if task.spec.num_classes not in (0, len(classes)):
            raise MultistillError(
                f"the model `{task.name}` has {task.spec.num_classes} outputs, and the manifest in "
                f"{task.manifest} has {len(classes)} classes; use a model and a manifest of the "
                "same job"
            )
        ids = Ids(table.column("utterance_id"))
        places = store.find(ids)
        stored = places >= 0
        of_part = {
            name: pc.equal(table.column("split"), name).to_numpy()
            for name in ("train", "valid", "test", UNLABELLED)
        }
        selected = of_part["train"] | of_part["valid"]
        if task.role != "teacher":
            selected |= of_part[UNLABELLED]
        if task.leave_out_fold is not None:
            in_fold = table.column("fold").to_numpy() == task.leave_out_fold
            selected &= ~of_part["train"] | ~in_fold
        labels, shares = label_arrays(table)
        if task.corpora:
            corpora, split = (table.column(name).to_numpy() for name in ("corpus", "split"))
            selected &= rows_of_corpora(task.corpora, corpora, split, labels, task.seed)
        dimensions = dimension_array(table, task.spec.dimensions)

        def examples(name: str) -> Examples:
            rows = np.flatnonzero(of_part[name] & selected & stored)
            if name == UNLABELLED and not task.spec.reads_audio:
                # Without a transcript, a teacher's answer is to what this student does not read.
                rows = rows[store.lengths("text", places[rows]) > 0]
            lengths = store.lengths(_modality(task), places[rows])
            found = Examples(
                ids.take(rows),
                shares[rows],
                labels[rows],
                _lengths_read(task, lengths),
                dimensions[rows],
            )
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
            tested = ids.take(np.flatnonzero(of_part["test"]))
            train = with_teacher(train, task, classes, tested)
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
    """Positions that a task reads of each clip, by which batches are sorted [N]."""
    read = store.audio_frames if _modality(task) == "audio" else store.text_tokens
    return _lengths_read(task, read(ids))


def _modality(task: TrainingTask) -> str:
    return "audio" if task.spec.reads_audio else "text"


def _lengths_read(task: TrainingTask, lengths: IntArray) -> IntArray:
    """Of the lengths of clips; at least 1: an empty clip or transcript still takes a position."""
    if task.spec.reads_audio and task.train.max_frames is not None:
        lengths = np.minimum(lengths, task.train.max_frames)
    return np.maximum(lengths, 1)


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
