"""Utterance ids as an Arrow array.

Ten million ids of 20 letters take 0.3 GB, and none are made into Python strings until they are
asked for; a list of them takes 0.8 GB and a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multistill.typing import IntArray

_AT_ONCE = 65_536  # ids that are made into Python strings at a time


class Ids(Sequence[str]):
    """A sequence of ids, which is equal to a list of the same ones.

    Attributes:
        array: `large_string` [N].

    Args:
        ids: an array or a column of strings, or the strings.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> None:
        if isinstance(ids, Ids):
            ids = ids.array
        elif not isinstance(ids, pa.Array | pa.ChunkedArray):
            ids = pa.array(ids, pa.large_string())
        # Wide before they are joined: all of them can have more than 2 GB.
        ids = ids.cast(pa.large_string())
        self.array: pa.Array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Ids: ...

    def __getitem__(self, place: int | slice) -> str | Ids:
        if not isinstance(place, slice):
            return str(self.array[place])
        rows = range(len(self))[place]
        if rows.step == 1:
            return Ids(self.array.slice(rows.start, len(rows)))
        # Arrow overflows at a step that a list takes: the rows are counted here.
        return self.take(np.fromiter(rows, np.int64, len(rows)))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.array.slice(start, _AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return bool(self.array.equals(other.array))
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} ids>"

    def take(self, rows: IntArray) -> Ids:
        """Some of them, in the order of the rows."""
        return Ids(self.array.take(pa.array(rows, pa.int64())))

    def extended(self, others: Ids) -> Ids:
        """These and then those."""
        return Ids(pa.concat_arrays([self.array, others.array]))

    def places(self, wanted: Ids) -> IntArray:
        """Where each wanted id is among these [M], -1 where it is not."""
        found = pc.fill_null(pc.index_in(wanted.array, value_set=self.array), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
