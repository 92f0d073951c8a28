"""Micro-batches on the device, read ahead of the computation.

Without a GPU a thread that reads takes the cores from the computation, but the disk works beside
it: the pages of the next micro-batches are asked for before they are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from multistill.features.collate import Batch, Unread, find, read_ahead
from multistill.features.copies import StoreWithCopies
from multistill.features.store import FeatureStore
from multistill.models.context import DialogueContext
from multistill.training.epochs import Epoch
from multistill.training.examples import Examples
from multistill.typing import IntArray

THREADS = 4
"""Reading and padding release the GIL, so threads are enough to keep a GPU busy."""

_PREFETCH = 8
"""Micro-batches that are read ahead."""


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch with everything that the loss needs, on one device.

    Attributes:
        rows: row indices in the split.
        states: padded encoder states and their masks.
        shares, labels: vote shares [b, C] and class indices [b], -1 where the votes tie.
        dimensions: values [b, D], NaN where there is none; D is 0 without dimensions.
        label_weights: factor of the label loss [b], where some rows have no label.
        teacher_logits, teacher_dimensions: [b, C] and [b, D], for students; NaN as `dimensions`,
            but not where a value is only hidden.
        teacher_weights: factor of the teacher's loss of classes [b], where some rows have no class.
        teacher_states, space: pooled states [b, D] and the index of the teacher that computed
            them [b], for students with a loss on representations.
        teacher_sequences: by modality [b, n, D], and their lengths [b], for students with a loss
            on sequences.
        context, context_mask: previous turns, for models that read them.
        mixing: share of each row itself where a second clip is mixed in [b].
        partner: targets of these second clips; it has no states.
    """

    rows: list[int]
    states: Batch
    shares: Tensor
    labels: Tensor
    dimensions: Tensor
    teacher_logits: Tensor | None = None
    teacher_dimensions: Tensor | None = None
    label_weights: Tensor | None = None
    teacher_weights: Tensor | None = None
    teacher_states: Tensor | None = None
    space: Tensor | None = None
    teacher_sequences: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    context: Tensor | None = None
    context_mask: Tensor | None = None
    mixing: Tensor | None = None
    partner: MicroBatch | None = None

    def to(self, device: torch.device) -> MicroBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            states=self.states.to(device),
            shares=self.shares.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            dimensions=self.dimensions.to(device, non_blocking=True),
            teacher_logits=move(self.teacher_logits),
            teacher_dimensions=move(self.teacher_dimensions),
            label_weights=move(self.label_weights),
            teacher_weights=move(self.teacher_weights),
            teacher_states=move(self.teacher_states),
            space=move(self.space),
            teacher_sequences={
                name: (states.to(device, non_blocking=True), lengths.to(device))
                for name, (states, lengths) in self.teacher_sequences.items()
            },
            context=move(self.context),
            context_mask=move(self.context_mask),
            mixing=move(self.mixing),
            partner=None if self.partner is None else self.partner.to(device),
        )

    def take(self, rows: slice) -> MicroBatch:
        """Some of its rows; of the states too."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        taken: dict[str, Any] = {
            k: v[rows] for k, v in values.items() if isinstance(v, Tensor | list)
        }
        sequences = {k: (s[rows], n[rows]) for k, (s, n) in self.teacher_sequences.items()}
        return replace(self, **taken, states=self.states.take(rows), teacher_sequences=sequences)


@dataclass(frozen=True)
class _Found:
    """The rows of a group, the ids of their clips, and where their states are."""

    group: IntArray
    rows: IntArray
    ids: list[str]
    states: Unread

    def will_read(self) -> None:
        self.states.will_read()


class Augmentation(Protocol):
    """What is done to the micro-batches of a training (`multistill.training.augmentation`)."""

    def places(self, epoch: Epoch, group: IntArray) -> IntArray:
        """The places of an epoch that a group is made of: its own, then those mixed in."""
        ...

    def __call__(self, micro_batch: MicroBatch, epoch: Epoch, group: IntArray) -> MicroBatch:
        """The changed micro-batch of a group, from that of its `places`."""
        ...


class Prefetcher:
    """Reads micro-batches from the store; for a GPU in threads, ahead and into pinned memory.

    Args:
        store: of the clips, with their copies where epochs have some.
        augmentation: of what is read in an epoch; None: clips are read as they are.
    """

    def __init__(
        self,
        store: FeatureStore | StoreWithCopies,
        device: torch.device,
        max_frames: int | None,
        context: DialogueContext | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store, self.device = store, device
        self.max_frames, self.context = max_frames, context
        self.augmentation = augmentation

    def micro_batches(
        self, examples: Examples, row_groups: Iterable[IntArray], epoch: Epoch | None = None
    ) -> Iterator[MicroBatch]:
        """One micro-batch per group of row indices, in order.

        Args:
            row_groups: with an epoch, groups of its places in place of rows.
        """
        if self.device.type != "cuda":
            unread = (self._find(examples, group, epoch) for group in row_groups)
            for found in read_ahead(unread, _PREFETCH):
                yield self._read(examples, found, epoch).to(self.device)
            return
        pending: deque[Future[MicroBatch]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch") as pool:
            try:
                for group in row_groups:
                    pending.append(pool.submit(self._find_and_read, examples, group, epoch))
                    if len(pending) > _PREFETCH:
                        yield pending.popleft().result().to(self.device)
                while pending:
                    yield pending.popleft().result().to(self.device)
            finally:
                for future in pending:
                    future.cancel()

    def _find_and_read(
        self, examples: Examples, group: IntArray, epoch: Epoch | None
    ) -> MicroBatch:
        found = self._find(examples, group, epoch)
        found.will_read()
        return self._read(examples, found, epoch)

    def _find(self, examples: Examples, group: IntArray, epoch: Epoch | None) -> _Found:
        """Find what a group reads."""
        rows, copies = group, None
        if epoch is not None:
            places = self.augmentation.places(epoch, group) if self.augmentation else group
            rows, copies = epoch.rows[places], epoch.copies[places]
        names = ids = list(examples.ids.take(rows))
        if copies is not None and isinstance(self.store, StoreWithCopies):
            names = self.store.names(ids, copies.tolist())
        return _Found(group, rows, ids, find(self.store, names, self.max_frames))

    def _read(self, examples: Examples, found: _Found, epoch: Epoch | None) -> MicroBatch:
        read = self._read_rows(examples, found)
        if epoch is not None and self.augmentation is not None:
            read = self.augmentation(read, epoch, found.group)
        return replace(read, states=read.states.pin()) if self.device.type == "cuda" else read

    def _read_rows(self, examples: Examples, found: _Found) -> MicroBatch:
        rows = found.rows
        context, context_mask = self.context.batch(found.ids) if self.context else (None, None)
        logits, teacher = examples.teacher_logits, examples.teacher_states
        values = examples.teacher_dimensions
        weights, of_teacher = examples.label_weights, examples.teacher_weights
        return MicroBatch(
            rows=rows.tolist(),
            states=found.states.read(),
            shares=torch.from_numpy(examples.shares[rows]),
            labels=torch.from_numpy(examples.labels[rows]),
            dimensions=torch.from_numpy(examples.dimensions[rows]),
            teacher_dimensions=None if values is None else torch.from_numpy(values[rows]),
            teacher_logits=None if logits is None else torch.from_numpy(logits[rows]),
            label_weights=None if weights is None else torch.from_numpy(weights[rows]),
            teacher_weights=None if of_teacher is None else torch.from_numpy(of_teacher[rows]),
            teacher_states=None if teacher is None else teacher.states[teacher.row_index[rows]],
            space=None if teacher is None else torch.from_numpy(teacher.space[rows]),
            teacher_sequences={} if teacher is None else teacher.batch_sequences(rows),
            context=context,
            context_mask=context_mask,
        )
