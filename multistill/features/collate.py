"""From the store to padded batches: planned by seed and epoch, split over ranks, collated.

Batches are planned over all ranks, so every rank takes the same number of steps and no row is
dropped; a rank takes every `world`-th row of each batch. Reading is zero-copy up to `collate`,
which casts directly into the padded float32 tensor. What is stored of an encoder that is
trained from waves or token ids keeps its integer type.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multistill.features.pages import will_need
from multistill.typing import AnyArray, FloatArray, IntArray

_INPUT_TYPES = {np.dtype(np.int16), np.dtype(np.int32)}
BUCKET_BATCHES = 16
"""Batches in one sorted bucket: enough to reduce padding, few enough to keep batches random."""


class StateReader(Protocol):
    """What is read of a `FeatureStore`."""

    @property
    def audio_dim(self) -> int: ...

    @property
    def text_dim(self) -> int: ...

    def audio_frames(self, ids: Sequence[str], /) -> IntArray: ...

    def text_tokens(self, ids: Sequence[str], /) -> IntArray: ...

    def raw(self, modality: str, utterance_id: str, /) -> tuple[AnyArray, FloatArray | None]: ...


@dataclass
class Batch:
    """Padded states of B utterances.

    Attributes:
        audio: [B, Ta, Da] float32 (waves: int16), zero in padded frames.
        audio_mask: [B, Ta] bool, False in padded frames.
        text: [B, Tt, Dt] float32 (token ids: int32), like `audio`.
        text_mask: [B, Tt] bool; all False for an utterance without transcript.
    """

    ids: list[str]
    audio: Tensor
    audio_mask: Tensor
    text: Tensor
    text_mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; from pinned memory the copy is asynchronous."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            self.ids,
            move(self.audio),
            move(self.audio_mask),
            move(self.text),
            move(self.text_mask),
        )

    def pin(self) -> Batch:
        """The batch in page-locked memory, so that copies to a GPU overlap with computation."""
        return Batch(
            self.ids,
            self.audio.pin_memory(),
            self.audio_mask.pin_memory(),
            self.text.pin_memory(),
            self.text_mask.pin_memory(),
        )

    def take(self, rows: slice) -> Batch:
        """Some of its rows, cut to the longest of them."""
        frames, tokens = (
            max(1, int(mask[rows].sum(dim=1).max())) if len(self.ids[rows]) else 1
            for mask in (self.audio_mask, self.text_mask)
        )
        return Batch(
            self.ids[rows],
            self.audio[rows, :frames],
            self.audio_mask[rows, :frames],
            self.text[rows, :tokens],
            self.text_mask[rows, :tokens],
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Unread:
    """The places of a batch in a store; `find` finds them.

    Attributes:
        audio, text: stored values and scales of each utterance, as of `StateReader.raw`.
        frames, tokens: of each that belong to the batch [B].
        audio_dim, text_dim: of the store.
    """

    ids: list[str]
    audio: list[tuple[AnyArray, FloatArray | None]]
    text: list[tuple[AnyArray, FloatArray | None]]
    frames: IntArray
    tokens: IntArray
    audio_dim: int
    text_dim: int

    def will_read(self) -> None:
        """Start to read the states from the disk, without waiting for them."""
        for places, lengths in ((self.audio, self.frames), (self.text, self.tokens)):
            for (values, _), length in zip(places, lengths.tolist(), strict=True):
                will_need(values[:length])

    def read(self) -> Batch:
        """The states, padded; call `will_read` before."""
        audio, audio_mask = _pad(self.audio, self.frames, self.audio_dim)
        text, text_mask = _pad(self.text, self.tokens, self.text_dim)
        return Batch(self.ids, audio, audio_mask, text, text_mask)


def find(store: StateReader, ids: Sequence[str], max_frames: int | None = None) -> Unread:
    """Find some utterances in a store; arguments as of `collate`."""
    frames = store.audio_frames(ids)
    if max_frames is not None:
        frames = np.minimum(frames, max_frames)
    tokens = store.text_tokens(ids)
    audio, text = ([store.raw(kind, name) for name in ids] for kind in ("audio", "text"))
    return Unread(list(ids), audio, text, frames, tokens, store.audio_dim, store.text_dim)


class _Readable(Protocol):
    """An `Unread`, or what holds one."""

    def will_read(self) -> None: ...


_T = TypeVar("_T", bound=_Readable)


def read_ahead(batches: Iterable[_T], count: int) -> Iterator[_T]:
    """The same batches, each after the disk was asked for those up to `count` later.

    A thread asks: where memory is short that takes time, since other pages have to go, but no GIL.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        asked: deque[tuple[_T, Future[None]]] = deque()
        for batch in batches:
            asked.append((batch, pool.submit(batch.will_read)))
            if len(asked) > count:
                yield _when_asked(*asked.popleft())
        while asked:
            yield _when_asked(*asked.popleft())


def _when_asked(batch: _T, done: Future[None]) -> _T:
    done.result()
    return batch


def collate(store: StateReader, ids: Sequence[str], max_frames: int | None = None) -> Batch:
    """Read the states of some utterances and pad them into one batch.

    Args:
        ids: can be empty, for ranks without a row: the batch has shape [0, 1, dim].
        max_frames: number of audio frames to keep from the start of each clip; None: all.
    """
    unread = find(store, ids, max_frames)
    unread.will_read()
    return unread.read()


def _pad(
    raw: Sequence[tuple[AnyArray, FloatArray | None]], lengths: IntArray, dim: int
) -> tuple[Tensor, Tensor]:
    width = max(1, int(lengths.max(initial=0)))
    kept = {values.dtype for values, _ in raw} & _INPUT_TYPES
    padded = np.empty((len(raw), width, dim), dtype=kept.pop() if kept else np.float32)
    for row, ((values, scales), length) in enumerate(zip(raw, lengths, strict=True)):
        target = padded[row, :length]
        if scales is not None:
            np.multiply(values[:length], scales, out=target, dtype=np.float32)
        elif values.dtype == np.uint16:  # the upper half of a float32
            np.left_shift(values[:length], 16, out=target.view(np.uint32), dtype=np.uint32)
        else:
            target[...] = values[:length]
        padded[row, length:] = 0
    mask = np.arange(width) < lengths[:, None]
    return torch.from_numpy(padded), torch.from_numpy(mask)


def plan_batches(
    lengths: npt.ArrayLike, batch_size: int, *, seed: int | None, epoch: int = 0
) -> list[IntArray]:
    """Row indices of every batch of one epoch, over all ranks; each row is in exactly one batch.

    Rows are shuffled, sorted by length inside buckets of BUCKET_BATCHES batches and cut into
    batches, whose order is shuffled: rows of similar length share a batch, and every epoch has
    other batches.

    Args:
        lengths: [N] frames of each row.
        seed: None: rows keep their order and nothing is shuffled (validation, prediction).
    """
    lengths = np.asarray(lengths)
    total = len(lengths)
    if seed is None:
        order = np.arange(total, dtype=np.int64)
        return [order[i : i + batch_size] for i in range(0, total, batch_size)]
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(total).astype(np.int64)
    bucket = batch_size * BUCKET_BATCHES
    # A stable sort leaves rows of equal length in shuffled order.
    order = np.concatenate(
        [
            rows[np.argsort(lengths[rows], kind="stable")]
            for rows in (order[i : i + bucket] for i in range(0, total, bucket))
        ]
        or [order]
    )
    batches = [order[i : i + batch_size] for i in range(0, total, batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def cut_by_padded_size(limit: float, *lengths: IntArray) -> Iterator[slice]:
    """Consecutive slices of rows whose padded size stays within a limit.

    The padded size of a slice is its number of rows times the sum of the longest lengths, one
    for each modality. A single row is a slice of its own even where it exceeds the limit. Rows
    sorted by length waste the least padding.

    Args:
        lengths: [N] of each modality, in the order in which the rows are cut.
    """
    start, longest = 0, (0,) * len(lengths)
    for end, row in enumerate(zip(*(column.tolist() for column in lengths), strict=True)):
        longest = tuple(map(max, longest, row))
        if end > start and (end - start + 1) * sum(longest) > limit:
            yield slice(start, end)
            start, longest = end, row
    if start < len(lengths[0]):
        yield slice(start, len(lengths[0]))


def shard_for_rank(batch: IntArray, rank: int, world: int) -> IntArray:
    """The rows of one rank: strided, so that lengths spread evenly; empty if rows run out."""
    return batch[rank::world]
