"""The plan of shards: which clips stand together, decided once and kept on disk.

    plan.arrow    one record batch a shard, clips sorted by length
    plan.json     its checksum against the manifest; written last

The plan depends on the manifest and the job file only, never on the number of workers, so
an interrupted run continues with the shards it began. Workers read their own record batch
from the file; the driver hands them numbers only, however large the corpus.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.errors import MultistillError
from multistill.workspace import atomic_path, canonical, clear, read_json, write_json

PLAN = "plan.arrow"
PLAN_FACTS = "plan.json"
COLUMNS = ["utterance_id", "audio_path", "text", "duration_s"]

WANTED_SHARDS = 16
"""Small corpora are cut finer than `shard_seconds`, for several workers and for resuming."""
SMALLEST_SHARD_S = 60.0


@dataclass(frozen=True)
class ShardPlan:
    """What there is to do. seconds and clips are of the whole corpus."""

    path: Path
    shards: int
    clips: int
    seconds: float


def plan_shards(manifest: Path, shard_seconds: float, out: Path) -> ShardPlan:
    """The plan in `out`: the one already there if it is of this manifest, else a new one.

    A plan of another manifest is removed with everything it led to.
    """
    table = pq.read_table(manifest, columns=COLUMNS)
    if not len(table):
        raise MultistillError(f"{manifest} has no utterance; check `corpora`")
    content = _digest(table)
    facts = _read_facts(out)
    if facts is None or facts["content"] != content:
        clear(out)
        facts = {"content": content, **_write(table, shard_seconds, out / PLAN)}
        write_json(out / PLAN_FACTS, facts)
    return ShardPlan(out / PLAN, facts["shards"], facts["clips"], facts["seconds"])


def read_shard(path: Path, shard: int) -> pa.RecordBatch:
    """The clips of one shard: COLUMNS, longest last."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(shard)
        # A copy: the mapping ends with this function.
        return pa.RecordBatch.from_pylist(batch.to_pylist(), schema=batch.schema)


def _read_facts(out: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = read_json(out / PLAN_FACTS)
        return facts if (out / PLAN).exists() else None
    except (FileNotFoundError, ValueError):
        return None


def _digest(table: pa.Table) -> str:
    """Of the values, not of how Arrow happened to chunk them."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in table.to_batches(max_chunksize=4096):
        digest.update(canonical(batch.to_pydict()).encode())
    return digest.hexdigest()


def _write(table: pa.Table, shard_seconds: float, path: Path) -> dict[str, Any]:
    order = [("duration_s", "ascending"), ("utterance_id", "ascending")]
    table = table.sort_by(order).combine_chunks()
    ends = np.cumsum(table.column("duration_s").to_numpy())
    total = float(ends[-1])
    size = min(shard_seconds, max(SMALLEST_SHARD_S, total / WANTED_SHARDS))
    shard_of = np.minimum(((ends - 1e-9) / size).astype(np.int64), int(total / size))
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    stops = np.append(starts[1:], len(table))
    schema = table.schema.remove_metadata()
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for start, stop in zip(starts, stops, strict=True):
            writer.write_batch(table.slice(start, stop - start).to_batches()[0])
    return {"shards": len(starts), "clips": len(table), "seconds": total}
