"""The index of a feature store: where the clips are, found by utterance id.

An Arrow IPC file of one record batch, sorted by utterance id, which is memory-mapped: opening it
reads nothing but the ids' bytes, which are checked, and all processes of a node share one copy in
the page cache. `hash` is the 64-bit XXH3 of the id and `by_hash` the rows in its order, so an id is
found by a binary search and not by a dictionary that every process would have to build and hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from multistill.damaged import reading
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
            self._ids = batch.column("utterance_id")
            self.columns = {name: batch.column(name).to_numpy() for name in SCHEMA.names[1:]}
        self._known: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[str]:
        """All ids in order."""
        found: list[str] = self._ids.to_pylist()
        return found

    def find(self, ids: Sequence[str]) -> IntArray:
        """The row of each id [N], -1 where there is none."""
        known = self._known
        rows = np.fromiter((known.get(name, -1) for name in ids), np.int64, len(ids))
        unknown = np.flatnonzero(rows < 0)
        if not len(unknown):
            return rows
        names = [ids[place] for place in unknown.tolist()] if len(unknown) < len(ids) else ids
        with reading(self.path):
            rows[unknown] = self._search(names)
        if len(names) <= _REMEMBERED:
            if len(known) + len(names) > _REMEMBERED:
                known.clear()
            known.update(zip(names, rows[unknown].tolist(), strict=True))
        return rows

    def _search(self, names: Sequence[str]) -> IntArray:
        rows = np.full(len(names), -1, np.int64)
        keys, by_hash = hashes(names), self.columns["by_hash"]
        wanted = pa.array(names, pa.large_string())
        places = np.searchsorted(self.columns["hash"], keys, sorter=by_hash)
        left = np.arange(len(names))
        while len(left := left[places[left] < len(by_hash)]):
            candidates = by_hash[places[left]]
            same = self.columns["hash"][candidates] == keys[left]
            left, candidates = left[same], candidates[same]
            equal = pc.equal(
                self._ids.take(pa.array(candidates)), wanted.take(pa.array(left))
            ).to_numpy(zero_copy_only=False)
            rows[left[equal]] = candidates[equal]
            left = left[~equal]
            places[left] += 1  # two ids of one hash
        return rows
