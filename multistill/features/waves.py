"""The decoded clips of one shard, and their Arrow form between decode task and encoder actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from multistill.audio.errors import UnusableClipError, describe
from multistill.config import FeaturesConfig
from multistill.features.decode import Wave, decode
from multistill.features.shards import COLUMNS, read_shard


@dataclass
class DecodedShard:
    """The decoded clips of one shard.

    Attributes:
        waves: row of the shard -> wave.
        reasons: row of the shard -> why the clip could not be decoded.
    """

    ids: list[str]
    paths: list[str]
    texts: list[str]
    waves: dict[int, Wave] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardSource:
    """Where the waves of a shard come from.

    Attributes:
        columns: of the manifest that `decode` reads from the plan.
        decode: plan, shard number and settings to the shard's waves; a function of a module, since
            it is sent to workers.
    """

    columns: Sequence[str]
    decode: Callable[[Path, int, FeaturesConfig], DecodedShard]


def decode_shard(plan: Path, shard: int, config: FeaturesConfig) -> DecodedShard:
    """Decode every clip of a shard; clips that fail get a reason instead of a wave.

    Whatever a clip raises is its own: only a lack of memory and a broken installation end the
    stage, since they would end it for the next clip, too.
    """
    clips = read_shard(plan, shard)
    decoded = DecodedShard(
        clips.column("utterance_id").to_pylist(),
        clips.column("audio_path").to_pylist(),
        [text or "" for text in clips.column("text").to_pylist()],
    )
    digests = clips.column("audio_digest").to_pylist()
    for row, (path, digest) in enumerate(zip(decoded.paths, digests, strict=True)):
        try:
            decoded.waves[row] = decode(
                path,
                max_seconds=config.speech.max_seconds,
                long_clips=config.speech.long_clips,
                digest=digest or None,
            )
        except UnusableClipError as error:
            decoded.reasons[row] = str(error)
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            decoded.reasons[row] = f"cannot be decoded: {type(error).__name__}: {describe(error)}"
    return decoded


RECORDINGS = ShardSource(COLUMNS, decode_shard)
"""The recordings as they are."""


def to_table(decoded: DecodedShard, shard: int) -> pa.Table:
    """Convert to a table of one row, which Ray Data cannot split over two encoders."""
    rows = sorted(decoded.waves)
    waves = [decoded.waves[row] for row in rows]
    samples = [wave.samples for wave in waves] or [np.zeros(0, np.float32)]
    return pa.table(
        {
            "shard": [shard],
            "ids": [decoded.ids],
            "paths": [decoded.paths],
            "texts": [decoded.texts],
            "rows": pa.array([rows], pa.list_(pa.int64())),
            "lengths": pa.array([[len(wave.samples) for wave in waves]], pa.list_(pa.int64())),
            "cut": pa.array([[wave.cut for wave in waves]], pa.list_(pa.bool_())),
            "silent": pa.array([[wave.silent for wave in waves]], pa.list_(pa.bool_())),
            "failed": pa.array([list(decoded.reasons)], pa.list_(pa.int64())),
            "reasons": pa.array([list(decoded.reasons.values())], pa.list_(pa.string())),
            "samples": pa.LargeListArray.from_arrays(
                pa.array([0, sum(map(len, samples))], pa.int64()),
                pa.array(np.concatenate(samples), pa.float32()),
            ),
        }
    )


def from_table(table: pa.Table) -> DecodedShard:
    """The inverse of `to_table`; the waves are views of the table's memory."""
    [row] = table.drop_columns(["samples"]).to_pylist()
    flat = table.column("samples").combine_chunks().flatten().to_numpy()
    ends = np.cumsum(row["lengths"], dtype=np.int64)
    waves = {
        number: Wave(flat[end - length : end], cut, silent)
        for number, length, end, cut, silent in zip(
            row["rows"], row["lengths"], ends, row["cut"], row["silent"], strict=True
        )
    }
    reasons = dict(zip(row["failed"], row["reasons"], strict=True))
    return DecodedShard(row["ids"], row["paths"], row["texts"], waves, reasons)
