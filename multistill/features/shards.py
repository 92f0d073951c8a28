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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multistill.damaged import read_table
from multistill.errors import MultistillError
from multistill.workspace import atomic_path, canonical, clear, read_json, write_json

PLAN = "plan.arrow"
PLAN_INFO = "plan.json"
COLUMNS = ["utterance_id", "audio_path", "audio_digest", "text", "duration_s"]

_DIGEST_ROWS = 65_536

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
    table = read_table(manifest, columns=list(columns))
    if not len(table):
        raise MultistillError(f"{manifest} has no utterances; check `corpora`")
    content = _digest(table)
    info = _read_info(out)
    if info is None or info["content"] != content:
        clear(out)
        info = {"content": content, **_write(table, shard_seconds, out / PLAN)}
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


def _digest(table: pa.Table) -> str:
    """Digest of the values, independent of the table's chunks."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(table), _DIGEST_ROWS):
        [batch] = table.slice(start, _DIGEST_ROWS).combine_chunks().to_batches()
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
    return digest.hexdigest()


def _write(table: pa.Table, shard_seconds: float, path: Path) -> dict[str, Any]:
    order = [("duration_s", "ascending"), ("utterance_id", "ascending")]
    table = table.sort_by(order).combine_chunks()
    ends = np.cumsum(table.column("duration_s").to_numpy())
    total = float(ends[-1])
    size = min(shard_seconds, max(MIN_SHARD_SECONDS, total / TARGET_SHARDS))
    shard_of = np.minimum(((ends - 1e-9) / size).astype(np.int64), int(total / size))
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    stops = np.append(starts[1:], len(table))
    schema = table.schema.remove_metadata()
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for start, stop in zip(starts, stops, strict=True):
            # A column of more than 2 GB of text stays in several chunks.
            [batch] = table.slice(start, stop - start).combine_chunks().to_batches()
            writer.write_batch(batch)
    return {"shards": len(starts), "clips": len(table), "seconds": total}
