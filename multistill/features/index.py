"""The index of a feature store: where the clips are, found by utterance id.

An Arrow IPC file of one record batch, sorted by utterance id, which is memory-mapped: opening it
reads nothing but the ids' bytes, which are checked, and all processes of a node share one copy in
the page cache. `hash` is the 64-bit XXH3 of the id and `by_hash` the rows in its order, so an id is
found by a binary search and not by a dictionary that every process would have to build and hold.
Many ids at once, as those of a manifest, are compared with the part of the index that they are in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from multistill.damaged import reading
from multistill.features.ids import Ids
from multistill.typing import IntArray
from multistill.workspace import atomic_path

INDEX = "index.arrow"
POSITION = ("shard", "batch", "row")
LENGTHS = ("audio_frames", "text_tokens")
SCHEMA = pa.schema(
    [
        ("utterance_id", pa.large_string()),
        *((name, pa.int32()) for name in (*POSITION, *LENGTHS)),
        ("hash", pa.uint64()),
        ("by_hash", pa.int64()),
    ]
)
_REMEMBERED = 1 << 20  # ids whose row is kept, about 100 MB
_FEW = 4096
_COMPARED = 65_536
_SPREAD = 8  # rows of the index for each id, above which a search is faster than a comparison


def hashes(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """XXH3 of the ids [N]."""
    return np.fromiter((xxh3_64_intdigest(name.encode()) for name in ids), np.uint64)


def write_index(folder: Path, clips: pa.Table) -> None:
    """Write the index of some clips.

    Args:
        clips: with the columns of `SCHEMA` but the last two, in any order of rows.

    Raises:
        ValueError: an id is there twice.
    """
    clips = clips.cast(pa.schema(list(SCHEMA)[:-2])).sort_by("utterance_id").combine_chunks()
    ids = clips["utterance_id"]
    if pc.any(pc.equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1)))).as_py():
        raise ValueError("an utterance id is there twice")
    batches = clips.select(["utterance_id"]).to_batches(max_chunksize=65_536)
    keys = np.concatenate([hashes(batch[0].to_pylist()) for batch in batches])
    table = clips.append_column("hash", pa.array(keys)).append_column(
        "by_hash", pa.array(np.argsort(keys, kind="stable"))
    )
    with (
        atomic_path(folder / INDEX) as temporary,
        pa.ipc.new_file(str(temporary), SCHEMA) as writer,
    ):
        writer.write_table(table)


class Index:
    """The rows of an index, by number and by utterance id.

    Raises:
        FileNotFoundError: there is none.
        MultistillError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / INDEX
        with reading(self.path):
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            if reader.schema != SCHEMA or reader.num_record_batches != 1:
                raise ValueError("it has other columns or parts")
            batch = reader.get_batch(0)
            batch.validate(full=True)  # offsets beyond the values would be read from other memory
            self.ids = Ids(batch.column("utterance_id"))
            self.columns = {name: batch.column(name).to_numpy() for name in SCHEMA.names[1:]}
        self._known: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Sequence[str]) -> IntArray:
        """The row of each id [N], -1 where there is none."""
        if len(ids) > _FEW:
            with reading(self.path):
                return self._find_many(Ids(ids))
        ids = list(ids)
        known = self._known
        rows = np.fromiter((known.get(name, -1) for name in ids), np.int64, len(ids))
        unknown = np.flatnonzero(rows < 0)
        if not len(unknown):
            return rows
        names = [ids[place] for place in unknown.tolist()]
        with reading(self.path):
            rows[unknown] = self._search(names)
        if len(known) + len(names) > _REMEMBERED:
            known.clear()
        known.update(zip(names, rows[unknown].tolist(), strict=True))
        return rows

    def _find_many(self, ids: Ids) -> IntArray:
        rows = np.full(len(ids), -1, np.int64)
        for start in range(0, len(ids), _COMPARED):
            part = ids[start : start + _COMPARED]
            ends = pc.min_max(part.array)
            first = bisect_left(self.ids, ends["min"].as_py())
            stretch = self.ids[first : bisect_right(self.ids, ends["max"].as_py(), lo=first)]
            if len(stretch) > _SPREAD * len(part):
                found = self._search(list(part))
            else:
                found = stretch.places(part)
                found[found >= 0] += first
            rows[start : start + len(part)] = found
        return rows

    def _search(self, names: Sequence[str]) -> IntArray:
        rows = np.full(len(names), -1, np.int64)
        keys, by_hash = hashes(names), self.columns["by_hash"]
        wanted = pa.array(names, pa.large_string())
        left = np.argsort(keys)  # in their order, neighbours are found in the same pages
        places = np.empty(len(names), np.int64)
        places[left] = np.searchsorted(self.columns["hash"], keys[left], sorter=by_hash)
        while len(left := left[places[left] < len(by_hash)]):
            candidates = by_hash[places[left]]
            same = self.columns["hash"][candidates] == keys[left]
            left, candidates = left[same], candidates[same]
            equal = pc.equal(self.ids.take(candidates).array, wanted.take(pa.array(left))).to_numpy(
                zero_copy_only=False
            )
            rows[left[equal]] = candidates[equal]
            left = left[~equal]
            places[left] += 1  # two ids of one hash
        return rows
