"""Write a feature store: one file and one done marker per shard, then the index.

`shard_writer` runs in the encoder processes, `finish_store` on the driver. The layout of the
folder is described in `store`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from multistill.encoders.base import Stored
from multistill.errors import MultistillError
from multistill.features.dtypes import Dtype, dtype_of, item_type, pack
from multistill.features.index import LENGTHS, write_index
from multistill.features.store import FORMAT, INFO, QUARANTINE, SHARDS
from multistill.typing import AnyArray
from multistill.workspace import read_json, write_json


@dataclass(frozen=True)
class Clip:
    """States of one utterance: audio [frames, audio_dim], text [tokens, text_dim].

    Of an encoder that is trained, the rows and columns are those of its stored input.
    """

    utterance_id: str
    audio: AnyArray
    text: AnyArray


STATES: Mapping[str, Stored] = {"audio": "states", "text": "states"}


def shard_schema(
    dtype: Dtype, audio_dim: int, text_dim: int, stored: Mapping[str, Stored] = STATES
) -> pa.Schema:
    """Arrow schema of a shard: one row per clip, states flattened in C order (`frames * dim`)."""
    types = {name: dtype_of(stored[name], dtype) for name in STATES}
    fields = [
        pa.field("utterance_id", pa.string(), nullable=False),
        pa.field("audio_frames", pa.int32(), nullable=False),
        pa.field("audio", pa.large_list(item_type(types["audio"])), nullable=False),
        pa.field("text_tokens", pa.int32(), nullable=False),
        pa.field("text", pa.large_list(item_type(types["text"])), nullable=False),
    ]
    fields += [
        pa.field(f"{name}_scale", pa.list_(pa.float32()), nullable=False)
        for name, each in types.items()
        if each == "int8"
    ]
    info = {"format": FORMAT, "dtype": dtype, "audio_dim": audio_dim, "text_dim": text_dim}
    return pa.schema(fields, metadata={"multistill": json.dumps(info)})


class _HashingStream:
    """A binary stream that keeps the digest and the length of what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.blake2b(digest_size=16)
        self.length = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.length += view.nbytes
        return self.stream.write(view)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.closed = True


class ShardWriter:
    """Append clips to the Arrow file of one shard, which `shard_writer` opens and publishes."""

    def __init__(
        self,
        sink: pa.NativeFile,
        dtype: Dtype,
        audio_dim: int,
        text_dim: int,
        stored: Mapping[str, Stored],
    ) -> None:
        self.schema = shard_schema(dtype, audio_dim, text_dim, stored)
        self._types = {name: dtype_of(stored[name], dtype) for name in STATES}
        self.rows = 0
        self._writer = pa.ipc.new_file(sink, self.schema)

    def append(self, clips: Sequence[Clip]) -> list[tuple[str, str]]:
        """Write clips as one record batch.

        Returns:
            (utterance_id, reason) of the clips whose values do not fit the stored type.
        """
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        refused: list[tuple[str, str]] = []
        for clip in clips:
            try:
                audio, audio_scale = pack(clip.audio, self._types["audio"])
                text, text_scale = pack(clip.text, self._types["text"])
            except OverflowError as error:
                reason = f"{error}; use `features.dtype: bfloat16`"
                refused.append((clip.utterance_id, reason))
                continue
            columns["utterance_id"].append(clip.utterance_id)
            columns["audio_frames"].append(len(audio))
            columns["audio"].append(audio.reshape(-1))
            columns["text_tokens"].append(len(text))
            columns["text"].append(text.reshape(-1))
            for name, scale in (("audio", audio_scale), ("text", text_scale)):
                if scale is not None:
                    columns[f"{name}_scale"].append(scale)
        if columns["utterance_id"]:
            arrays = [_column(self.schema.field(name), columns[name]) for name in columns]
            self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
            self.rows += len(columns["utterance_id"])
        return refused

    def close(self) -> None:
        self._writer.close()


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    """A column from Python scalars or, for list types, from one flat array per row."""
    if not (pa.types.is_large_list(field.type) or pa.types.is_list(field.type)):
        return pa.array(values, type=field.type)
    wide = pa.types.is_large_list(field.type)
    lengths = np.fromiter((len(value) for value in values), dtype=np.int64, count=len(values))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = pa.array(np.concatenate(values), type=field.type.value_type)
    if wide:
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat, type=field.type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=field.type)


def marker_path(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:05d}.json"


@contextmanager
def shard_writer(
    folder: Path,
    shard: int,
    dtype: Dtype,
    audio_dim: int,
    text_dim: int,
    extra: dict[str, Any],
    stored: Mapping[str, Stored] = STATES,
) -> Iterator[ShardWriter]:
    """Write one shard to a temporary file, rename it, and write its done marker.

    Two attempts at a shard can overlap, when a worker that was taken for dead still runs. Each
    marker names the file of its own attempt, so the last marker always describes a complete file.

    Args:
        dtype: of states.
        extra: further fields of the marker; may be filled while the shard is being written.
        stored: what is stored as `audio` and as `text`.
    """
    shards = folder / SHARDS
    shards.mkdir(parents=True, exist_ok=True)
    # Not `atomic_path`: the final name holds the checksum, which is known only at the end.
    temporary = shards / f".{shard:05d}-{os.uname().nodename}-{os.getpid()}"
    try:
        with temporary.open("wb") as stream:
            hashing = _HashingStream(stream)
            with pa.PythonFile(hashing, mode="w") as sink:
                writer = ShardWriter(sink, dtype, audio_dim, text_dim, stored)
                yield writer
                writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        checksum = hashing.digest.hexdigest()
        name = f"{shard:05d}-{checksum[:8]}.arrow"
        temporary.replace(shards / name)
        marker = {
            "shard": shard,
            "file": name,
            "rows": writer.rows,
            "bytes": hashing.length,
            "blake2b": checksum,
            **extra,
        }
        write_json(marker_path(folder, shard), marker)
    finally:
        temporary.unlink(missing_ok=True)


def read_marker(folder: Path, shard: int) -> dict[str, Any] | None:
    """The done marker of a shard; None if it or its file is missing or has another size."""
    try:
        marker = read_json(marker_path(folder, shard))
        size = (folder / SHARDS / marker["file"]).stat().st_size
        return cast("dict[str, Any]", marker) if size == marker["bytes"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def finish_store(
    folder: Path, markers: Sequence[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Index the finished shards, write features.json and remove shard files without a marker.

    Args:
        info: content of features.json except the format version and the shards.

    Returns:
        the content of features.json.

    Raises:
        MultistillError: nothing was encoded, or an utterance is stored twice.
    """
    shards = [
        {key: marker[key] for key in ("shard", "file", "rows", "bytes", "blake2b")}
        for marker in markers
        if marker["rows"]
    ]
    _write_index(folder, shards)
    indexed = {entry["file"] for entry in shards}
    for path in (folder / SHARDS).glob("*.arrow"):
        if path.name not in indexed:
            path.unlink()
    content = {"format": FORMAT, **info, "shards": shards}
    write_json(folder / INFO, content)
    return content


def _write_index(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    tables = []
    for entry in shards:
        reader = pa.ipc.open_file(pa.memory_map(str(folder / SHARDS / entry["file"])))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            rows = len(batch)
            columns = {
                "utterance_id": batch.column("utterance_id"),
                "shard": pa.array(np.full(rows, entry["shard"], np.int32)),
                "batch": pa.array(np.full(rows, number, np.int32)),
                "row": pa.array(np.arange(rows, dtype=np.int32)),
                **{name: batch.column(name) for name in LENGTHS},
            }
            tables.append(pa.table(columns))
    if not tables:
        raise MultistillError(f"no clip could be encoded; see {folder / QUARANTINE}")
    try:
        write_index(folder, pa.concat_tables(tables))
    except ValueError as error:
        raise MultistillError(
            f"{folder} holds the same utterance twice; remove the folder and run again"
        ) from error
