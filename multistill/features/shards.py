"""The shard plan: which clips share a shard, decided once and kept on disk.

    plan.arrow    one record batch per shard, clips sorted by length
    plan.json     digest of the manifest that the plan was made from, and totals; written last

The plan depends on the manifest and the job file only, not on the number of workers, so an
interrupted run continues with the same shards. The driver sends shard numbers to the workers,
which read their record batch from the file, so its messages do not grow with the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from multistill.damaged import read_parts
from multistill.errors import MultistillError
from multistill.typing import IntArray
from multistill.workspace import atomic_path, canonical, clear, read_json, write_json

PLAN = "plan.arrow"
PLAN_INFO = "plan.json"
COLUMNS = ["utterance_id", "audio_path", "audio_digest", "text", "duration_s"]

_DIGEST_ROWS = 65_536
_SHARDS_AT_ONCE = 64  # whose rows are gathered by one call

TARGET_SHARDS = 16
"""Small corpora get shards below `shard_seconds`, so that workers share them and runs resume."""
MIN_SHARD_SECONDS = 60.0


@dataclass(frozen=True)
class ShardPlan:
    """A plan on disk: its file, the number of shards, and the clips and seconds of all of them."""

    path: Path
    shards: int
    clips: int
    seconds: float


def plan_shards(
    manifest: Path, shard_seconds: float, out: Path, columns: Sequence[str] = COLUMNS
) -> ShardPlan:
    """The plan in `out` if it was made from this manifest, else a new one.

    Everything else in `out` belongs to the plan and is removed if the plan is replaced.

    Args:
        columns: of the manifest that the workers read, COLUMNS among them.

    Raises:
        MultistillError: the manifest is empty.
    """
    info = _read_info(out)
    digest = hashlib.blake2b(digest_size=16)
    rows: list[pa.RecordBatch] = []
    count = 0
    for part in read_parts(manifest, columns, _DIGEST_ROWS):
        _update(digest, part)
        count += len(part)
        if info is None:
            rows.append(part)
    if not count:
        raise MultistillError(f"{manifest} has no utterances; check `corpora`")
    if info is None or info["content"] != digest.hexdigest():
        rows = rows or list(read_parts(manifest, columns, _DIGEST_ROWS))
        clear(out)
        info = {"content": digest.hexdigest(), **_write(rows, shard_seconds, out / PLAN)}
        write_json(out / PLAN_INFO, info)
    return ShardPlan(out / PLAN, info["shards"], info["clips"], info["seconds"])


def read_shard(path: Path, shard: int) -> pa.RecordBatch:
    """The clips of one shard with the columns of the plan, longest last."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(shard)
        # Copied, since the memory map is closed here.
        return pa.RecordBatch.from_pylist(batch.to_pylist(), schema=batch.schema)


def _read_info(out: Path) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = read_json(out / PLAN_INFO)
        return info if (out / PLAN).exists() else None
    except (FileNotFoundError, ValueError):
        return None


def _update(digest: hashlib.blake2b, batch: pa.RecordBatch) -> None:
    """Add the values of some rows."""
    for column in batch.columns:
        values = column.drop_null()
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(values.type) and len(values):
            digest.update(pc.binary_length(values).to_numpy().tobytes())
            # Not `serialize`, which pads with whatever stands behind the values in memory.
            offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset :]
            first, last = int(offsets[0]), int(offsets[len(values)])
            digest.update(memoryview(values.buffers()[2])[first:last] if last > first else b"")
        elif pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            digest.update(values.to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(canonical(values.to_pylist()).encode())


def _write(parts: list[pa.RecordBatch], shard_seconds: float, path: Path) -> dict[str, Any]:
    """Write the plan of some rows, whose list is emptied."""
    schema = parts[0].schema.remove_metadata()
    chunks = {name: [part[name] for part in parts] for name in schema.names}
    parts.clear()
    columns = {name: _concatenated(chunks.pop(name)) for name in schema.names}
    seconds = columns["duration_s"].to_numpy()
    order = _order(seconds, columns["utterance_id"])
    ends = np.cumsum(seconds[order])
    total = float(ends[-1])
    size = min(shard_seconds, max(MIN_SHARD_SECONDS, total / TARGET_SHARDS))
    shard_of = np.minimum(((ends - 1e-9) / size).astype(np.int64), int(total / size))
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    bounds = [*starts.tolist(), len(order)]
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for number in range(0, len(starts), _SHARDS_AT_ONCE):
            some = bounds[number : number + _SHARDS_AT_ONCE + 1]
            rows = pa.array(order[some[0] : some[-1]])
            taken = [columns[field.name].take(rows).cast(field.type) for field in schema]
            batch = pa.record_batch(taken, schema=schema)
            for start, stop in pairwise(some):
                writer.write_batch(batch.slice(start - some[0], stop - start))
    return {"shards": len(starts), "clips": len(order), "seconds": total}


def _concatenated(chunks: Sequence[pa.Array]) -> pa.Array:
    """One array; of strings with wide offsets, since all of them can have more than 2 GB."""
    wide = pa.large_string() if pa.types.is_string(chunks[0].type) else chunks[0].type
    return pa.concat_arrays([chunk.cast(wide) for chunk in chunks])


def _order(seconds: npt.NDArray[np.float64], ids: pa.Array) -> IntArray:
    """Rows by length, and by id where lengths are equal."""
    if pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py():
        return np.argsort(seconds, kind="stable")
    table = pa.table({"seconds": seconds, "ids": ids})
    keys = [("seconds", "ascending"), ("ids", "ascending")]
    return pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)
