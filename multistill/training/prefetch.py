"""Pieces of batches on the device, prepared ahead of the computation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multistill.features.collate import Batch, collate
from multistill.features.store import FeatureStore
from multistill.models.context import DialogueContext
from multistill.training.data import Rows
from multistill.typing import IntArray

THREADS = 4
"""Reading and padding release the interpreter lock, so threads keep a GPU fed."""

_AHEAD = 8


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch with all that the loss needs, on one device.

    Attributes:
        rows: row numbers in the split.
        context, context_mask: previous turns, for models that read them.
        teacher: the teacher's logits [b, 7], for students.
        teacher_states, space: its representations [b, D] and whose space they lie in [b],
            for students that learn from them.
    """

    rows: list[int]
    states: Batch
    shares: Tensor
    winner: Tensor
    teacher: Tensor | None = None
    teacher_states: Tensor | None = None
    space: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            states=self.states.to(device),
            shares=self.shares.to(device, non_blocking=True),
            winner=self.winner.to(device, non_blocking=True),
            teacher=move(self.teacher),
            teacher_states=move(self.teacher_states),
            space=move(self.space),
            context=move(self.context),
            context_mask=move(self.context_mask),
        )


class Prefetcher:
    """Reads pieces from the store; on a GPU some pieces ahead, through pinned memory."""

    def __init__(
        self,
        store: FeatureStore,
        device: torch.device,
        max_frames: int | None,
        context: DialogueContext | None = None,
    ) -> None:
        self.store, self.device = store, device
        self.max_frames, self.context = max_frames, context

    def pieces(self, data: Rows, parts: Iterable[IntArray]) -> Iterator[MicroBatch]:
        """One piece for each group of row numbers, in order."""
        if self.device.type != "cuda":
            for part in parts:
                yield self._prepare(data, part).to(self.device)
            return
        waiting: deque[Future[MicroBatch]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="supply") as pool:
            try:
                for part in parts:
                    waiting.append(pool.submit(self._prepare, data, part))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result().to(self.device)
                while waiting:
                    yield waiting.popleft().result().to(self.device)
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, data: Rows, part: IntArray) -> MicroBatch:
        ids = [data.ids[row] for row in part]
        states = collate(self.store, ids, self.max_frames)
        context, context_mask = self.context.batch(ids) if self.context else (None, None)
        taught = data.states
        return MicroBatch(
            rows=part.tolist(),
            states=states.pin() if self.device.type == "cuda" else states,
            shares=torch.from_numpy(data.shares[part]),
            winner=torch.from_numpy(data.winner[part]),
            teacher=None if data.teacher is None else torch.from_numpy(data.teacher[part]),
            teacher_states=None if taught is None else taught.table[taught.place[part]],
            space=None if taught is None else torch.from_numpy(taught.space[part]),
            context=context,
            context_mask=context_mask,
        )
