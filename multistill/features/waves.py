"""The waves of one shard, and their way from a decoding task to an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from multistill.config import FeaturesConfig
from multistill.encoders.audio import UnusableClipError, Wave, decode
from multistill.features.shards import read_shard


@dataclass
class Decoded:
    """The waves of one shard, and why others have none."""

    ids: list[str]
    paths: list[str]
    texts: list[str]
    waves: dict[int, Wave] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def decode_shard(plan: Path, shard: int, config: FeaturesConfig) -> Decoded:
    """Read and normalise every clip of a shard."""
    clips = read_shard(plan, shard)
    decoded = Decoded(
        clips.column("utterance_id").to_pylist(),
        clips.column("audio_path").to_pylist(),
        [text or "" for text in clips.column("text").to_pylist()],
    )
    for row, path in enumerate(decoded.paths):
        try:
            decoded.waves[row] = decode(
                path,
                max_seconds=config.speech.max_seconds,
                long_clips=config.speech.long_clips,
            )
        except UnusableClipError as error:
            decoded.reasons[row] = str(error)
    return decoded


def to_table(decoded: Decoded, shard: int) -> pa.Table:
    """A decoded shard as one Arrow row, so that Ray can neither split nor merge it."""
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
            "failed": pa.array([list(decoded.reasons)], pa.list_(pa.int64())),
            "reasons": pa.array([list(decoded.reasons.values())], pa.list_(pa.string())),
            "samples": pa.LargeListArray.from_arrays(
                pa.array([0, sum(map(len, samples))], pa.int64()),
                pa.array(np.concatenate(samples), pa.float32()),
            ),
        }
    )


def from_table(table: pa.Table) -> Decoded:
    """The inverse of `to_table`; the waves view the table's memory."""
    [row] = table.drop_columns(["samples"]).to_pylist()
    flat = table.column("samples").combine_chunks().flatten().to_numpy()
    ends = np.cumsum(row["lengths"], dtype=np.int64)
    waves = {
        place: Wave(flat[end - length : end], cut)
        for place, length, end, cut in zip(
            row["rows"], row["lengths"], ends, row["cut"], strict=True
        )
    }
    reasons = dict(zip(row["failed"], row["reasons"], strict=True))
    return Decoded(row["ids"], row["paths"], row["texts"], waves, reasons)
