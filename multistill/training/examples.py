"""Utterances of one split as arrays: labels, lengths, and what a teacher says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from multistill.corpora.manifest import has_class
from multistill.features.ids import Ids
from multistill.typing import FloatArray, IntArray


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

    ids: Ids
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
        taken = Examples(
            self.ids.take(rows),
            self.shares[rows],
            self.labels[rows],
            self.lengths[rows],
            self.dimensions[rows],
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
            ids=self.ids.extended(unlabelled.ids),
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
