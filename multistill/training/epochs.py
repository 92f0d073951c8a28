"""What an epoch reads: the clips of each batch, and what augmentation draws for each of them.

Everything is a function of (seed, epoch, utterance), made for all ranks at once, so it depends
neither on the number of workers and micro-batches nor on whether a training was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt

from multistill.corpora.manifest import has_class
from multistill.features.collate import plan_batches
from multistill.training.data import TrainingData, state_lengths
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray, IntArray

_PLANNED, _CHANGED, _CHANGED_PARTNER = range(3)
"""What random numbers are for, so that one setting does not change the draws of another."""


@dataclass(frozen=True)
class Epoch:
    """The places of an epoch: a clip that is oversampled has several.

    Attributes:
        rows: row of the training examples at each place [M].
        copies: number of the distorted copy that is read there [M]; 0: the clip itself.
        lengths: sort key for batches [M], of all that is read there.
        partners: place whose clip is mixed in [M].
        mixing: share of the clip itself in the mixture [M], from 0.5 to 1; 1 without mixup.
        batches: places of each batch.
        keys: what the random numbers of each place are derived from.
    """

    rows: IntArray
    copies: IntArray
    lengths: IntArray
    partners: IntArray
    mixing: FloatArray
    batches: list[IntArray]
    keys: PlaceKeys

    def random(self, place: int, *, as_partner: bool = False) -> np.random.Generator:
        """Random numbers of the changes of a place's states, or of those of its partner."""
        purpose = _CHANGED_PARTNER if as_partner else _CHANGED
        return np.random.default_rng((purpose, *self.keys[place]))


class PlaceKeys(Sequence[tuple[int, ...]]):
    """The key of each place: seed, pass, digest of the clip's id, earlier places of it in the pass.

    A key is made when it is asked for: an epoch without random numbers needs none.
    """

    def __init__(
        self, seed: int, ids: Sequence[str], rows: IntArray, passes: IntArray, seen: IntArray
    ) -> None:
        self.seed, self.ids, self.rows, self.passes, self.seen = seed, ids, rows, passes, seen

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> PlaceKeys: ...

    def __getitem__(self, place: int | slice) -> tuple[int, ...] | PlaceKeys:
        rows, passes, seen = (each[place] for each in (self.rows, self.passes, self.seen))
        if isinstance(place, slice):
            return PlaceKeys(self.seed, self.ids, rows, passes, seen)
        return self.seed, int(passes), _digest(self.ids[int(rows)]), int(seen)

    def extended(self, others: Sequence[PlaceKeys]) -> PlaceKeys:
        """These keys and then those of other passes of the same training."""
        every = (self, *others)
        return PlaceKeys(
            self.seed,
            self.ids,
            np.concatenate([each.rows for each in every]),
            np.concatenate([each.passes for each in every]),
            np.concatenate([each.seen for each in every]),
        )


class EpochPlanner:
    """Plans the epochs of one training."""

    def __init__(self, task: TrainingTask, data: TrainingData) -> None:
        self.seed, self.config = task.seed, task.train
        self.passes, self.train = data.passes, data.train
        self.lengths = data.train.lengths[None]
        if data.copies is not None:
            ids = data.train.ids
            copied = [
                state_lengths(task, data.copies, data.copies.names(ids, [copy] * len(ids)))
                for copy in range(1, data.copies.count + 1)
            ]
            self.lengths = np.stack([data.train.lengths, *copied])

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.passes * -(-len(self.train) // self.config.batch_size)

    def plan(self, epoch: int) -> Epoch:
        """The places of an epoch, one pass over the training rows after another.

        Args:
            epoch: 1 for the first.
        """
        passes = [
            self._pass(number)
            for number in range(self.passes * (epoch - 1) + 1, self.passes * epoch + 1)
        ]
        starts = np.cumsum([0, *(len(each.rows) for each in passes[:-1])]).tolist()
        moved = [
            replace(each, batches=[b + start for b in each.batches], partners=each.partners + start)
            for each, start in zip(passes, starts, strict=True)
        ]
        return Epoch(
            rows=np.concatenate([each.rows for each in moved]),
            copies=np.concatenate([each.copies for each in moved]),
            lengths=np.concatenate([each.lengths for each in moved]),
            partners=np.concatenate([each.partners for each in moved]),
            mixing=np.concatenate([each.mixing for each in moved]),
            batches=[batch for each in moved for batch in each.batches],
            keys=moved[0].keys.extended([each.keys for each in moved[1:]]),
        )

    def _pass(self, number: int) -> Epoch:
        augmentation = self.config.augmentation
        rows = self._rows(number)
        passes = np.full(len(rows), number, np.int64)
        keys = PlaceKeys(self.seed, self.train.ids, rows, passes, _times_before(rows))
        copies = np.zeros(len(rows), dtype=np.int64)
        mixes = augmentation.mixup > 0
        partners = np.arange(len(rows), dtype=np.int64)
        mixing = np.ones(len(rows), dtype=np.float32)
        for place in range(len(rows) if mixes or len(self.lengths) > 1 else 0):
            random = np.random.default_rng((_PLANNED, *keys[place]))
            copies[place] = random.integers(len(self.lengths))
            if mixes:
                partners[place] = random.integers(len(rows))
                share = random.beta(augmentation.mixup, augmentation.mixup)
                mixing[place] = max(share, 1.0 - share)
        lengths = self.lengths[copies, rows]
        if augmentation.mixes_pooled:  # two rows, each padded to the longer
            lengths = 2 * np.maximum(lengths, lengths[partners])
        batches = plan_batches(lengths, self.config.batch_size, seed=self.seed, epoch=number)
        return Epoch(rows, copies, lengths, partners, mixing, batches, keys)

    def _rows(self, number: int) -> IntArray:
        """Training rows of a pass: each row once, or drawn with replacement to oversample."""
        count = len(self.train)
        if not self.config.oversample:
            return np.arange(count, dtype=np.int64)
        generator = np.random.default_rng((self.seed, number, count))
        rows = generator.choice(count, count, p=sampling_weights(self.train.shares))
        return rows.astype(np.int64)


def sampling_weights(shares: FloatArray) -> npt.NDArray[np.float64]:
    """Probability of drawing each row [N] under which all classes have equal weight.

    A row with mixed votes counts for each class by its share, a row without a class, which has
    dimensions, like the mean of the others.
    """
    counts = shares.sum(axis=0, dtype=np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights = np.asarray(shares @ inverse, np.float64)
    without = ~has_class(shares)
    if without.any() and not without.all():
        weights[without] = weights[~without].mean()
    return np.asarray(weights / weights.sum())


def _times_before(rows: IntArray) -> IntArray:
    """How often each row is there before [M]."""
    order = np.argsort(rows, kind="stable")
    first = np.searchsorted(rows, rows, side="left", sorter=order)
    times = np.empty(len(rows), np.int64)
    times[order] = np.arange(len(rows))
    return times - first


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
