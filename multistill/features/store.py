"""The feature store: Arrow shards, memory-mapped, read by utterance id.

    features.json               encoders, dimensions, dtype; file and checksum of each shard
    index.parquet               utterance_id, shard, batch, row, audio_frames, text_tokens
    quarantine.parquet          utterance_id, audio_path, reason
    shards/00000-1f0c….arrow    Arrow IPC file, one row a clip; the name holds its checksum
    shards/00000.json           its done marker: file, rows, bytes, checksum

`docs/features.md` tells how to read it with plain pyarrow. States are stored without
padding, so a clip of 3 s holds 3 s. All processes of a node that read a store share one
copy of it through the page cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.errors import MultistillError
from multistill.features.dtypes import Dtype, item_type, pack, unpack
from multistill.typing import AnyArray, FloatArray, IntArray
from multistill.workspace import atomic_path, read_json, write_json

FORMAT = 1
FACTS = "features.json"
INDEX = "index.parquet"
QUARANTINE = "quarantine.parquet"
SHARDS = "shards"


@dataclass(frozen=True)
class Clip:
    """States of one utterance: audio [frames, audio_dim], text [tokens, text_dim]."""

    utterance_id: str
    audio: FloatArray
    text: FloatArray


def shard_schema(dtype: Dtype, audio_dim: int, text_dim: int) -> pa.Schema:
    """One row a clip; states flattened row by row, so `frames * dim` values each."""
    values = pa.large_list(item_type(dtype))
    fields = [
        pa.field("utterance_id", pa.string(), nullable=False),
        pa.field("audio_frames", pa.int32(), nullable=False),
        pa.field("audio", values, nullable=False),
        pa.field("text_tokens", pa.int32(), nullable=False),
        pa.field("text", values, nullable=False),
    ]
    if dtype == "int8":
        fields += [
            pa.field("audio_scale", pa.list_(pa.float32()), nullable=False),
            pa.field("text_scale", pa.list_(pa.float32()), nullable=False),
        ]
    facts = {"format": FORMAT, "dtype": dtype, "audio_dim": audio_dim, "text_dim": text_dim}
    return pa.schema(fields, metadata={"multistill": json.dumps(facts)})


class _Hashing:
    """A sink that knows the digest and length of what went through it."""

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
    """Appends clips to one shard; `shard_writer` makes it appear whole or not at all."""

    def __init__(self, sink: pa.NativeFile, dtype: Dtype, audio_dim: int, text_dim: int) -> None:
        self.dtype = dtype
        self.schema = shard_schema(dtype, audio_dim, text_dim)
        self.rows = 0
        self._writer = pa.ipc.new_file(sink, self.schema)

    def append(self, clips: Sequence[Clip]) -> list[tuple[str, str]]:
        """Write clips as one record batch.

        Returns:
            (utterance_id, reason) of the clips that the stored type cannot hold.
        """
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        refused: list[tuple[str, str]] = []
        for clip in clips:
            try:
                audio, audio_scale = pack(clip.audio, self.dtype)
                text, text_scale = pack(clip.text, self.dtype)
            except OverflowError as error:
                reason = f"{error}; use `features.dtype: bfloat16`"
                refused.append((clip.utterance_id, reason))
                continue
            columns["utterance_id"].append(clip.utterance_id)
            columns["audio_frames"].append(len(audio))
            columns["audio"].append(audio.reshape(-1))
            columns["text_tokens"].append(len(text))
            columns["text"].append(text.reshape(-1))
            if audio_scale is not None and text_scale is not None:
                columns["audio_scale"].append(audio_scale)
                columns["text_scale"].append(text_scale)
        if columns["utterance_id"]:
            arrays = [_column(self.schema.field(name), columns[name]) for name in columns]
            self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
            self.rows += len(columns["utterance_id"])
        return refused

    def close(self) -> None:
        self._writer.close()


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    """A column from Python scalars or, for lists, from flat arrays without a copy per item."""
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
    folder: Path, shard: int, dtype: Dtype, audio_dim: int, text_dim: int, facts: dict[str, Any]
) -> Iterator[ShardWriter]:
    """Write one shard: beside its place, then renamed, then marked done.

    Two attempts at one shard may overlap (a worker thought dead that is not). Each marker
    names its own file, so whichever comes last is whole.

    Args:
        facts: further facts for the marker; may be filled while writing.
    """
    shards = folder / SHARDS
    shards.mkdir(parents=True, exist_ok=True)
    temporary = shards / f".{shard:05d}-{os.uname().nodename}-{os.getpid()}"
    try:
        with temporary.open("wb") as stream:
            hashing = _Hashing(stream)
            with pa.PythonFile(hashing, mode="w") as sink:
                writer = ShardWriter(sink, dtype, audio_dim, text_dim)
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
            **facts,
        }
        write_json(marker_path(folder, shard), marker)
    finally:
        temporary.unlink(missing_ok=True)


def read_marker(folder: Path, shard: int) -> dict[str, Any] | None:
    """The done marker of a shard whose file is really there, else None."""
    try:
        marker = read_json(marker_path(folder, shard))
        size = (folder / SHARDS / marker["file"]).stat().st_size
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return cast("dict[str, Any]", marker) if size == marker["bytes"] else None


class _Batch:
    """One record batch as arrays that view the mapped file."""

    def __init__(self, batch: pa.RecordBatch, dtype: Dtype) -> None:
        self.dtype = dtype
        self.columns = {}
        for name in ("audio", "text"):
            column = batch.column(name)
            scales = None
            if dtype == "int8":
                scale = batch.column(f"{name}_scale")
                scales = scale.values.to_numpy().reshape(len(scale), -1)
            self.columns[name] = (
                column.values.to_numpy(zero_copy_only=True),
                column.offsets.to_numpy(),
                scales,
            )

    def raw(self, name: str, row: int, dim: int) -> tuple[AnyArray, FloatArray | None]:
        values, offsets, scales = self.columns[name]
        states = values[offsets[row] : offsets[row + 1]].reshape(-1, dim)
        return states, None if scales is None else scales[row]


class FeatureStore:
    """Random access to a finished store.

    Args:
        folder: holds features.json, index.parquet and shards/. `cache.open_store` also takes
            an address, and copies the store to the node first.
    Raises:
        MultistillError: the folder is not a store, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.info: dict[str, Any] = read_json(self.folder / FACTS)
            index = pq.read_table(self.folder / INDEX, memory_map=True)
        except FileNotFoundError as error:
            raise MultistillError(
                f"{self.folder} is not a finished feature store ({error.filename} is missing); "
                "run the features stage"
            ) from error
        if self.info.get("format") != FORMAT:
            raise MultistillError(
                f"{self.folder} has store format {self.info.get('format')}, this version reads "
                f"{FORMAT}; run the features stage again"
            )
        self.dtype: Dtype = self.info["dtype"]
        self.audio_dim: int = self.info["audio_dim"]
        self.text_dim: int = self.info["text_dim"]
        self.ids: list[str] = index.column("utterance_id").to_pylist()
        self._row = {name: row for row, name in enumerate(self.ids)}
        self._place = np.stack(
            [index.column(name).to_numpy() for name in ("shard", "batch", "row")], axis=1
        )
        self._frames = index.column("audio_frames").to_numpy().astype(np.int64)
        self._tokens = index.column("text_tokens").to_numpy().astype(np.int64)
        self._files = {entry["shard"]: entry for entry in self.info["shards"]}
        self._shards: dict[int, list[_Batch]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._row

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def rows(self, ids: Iterable[str]) -> IntArray:
        """Positions of utterances in `.ids`."""
        try:
            return np.fromiter((self._row[name] for name in ids), dtype=np.int64)
        except KeyError as error:
            raise MultistillError(
                f"utterance {error.args[0]} is not in the store {self.folder}; see its {QUARANTINE}"
            ) from None

    def audio_frames(self, ids: Iterable[str]) -> IntArray:
        """Frames of each utterance, without touching the states."""
        return self._frames[self.rows(ids)]

    def text_tokens(self, ids: Iterable[str]) -> IntArray:
        """Tokens of each utterance; 0 for an empty transcript."""
        return self._tokens[self.rows(ids)]

    def audio(self, utterance_id: str) -> AnyArray:
        """Speech states [frames, audio_dim]; float16 and float32 stores give read-only views."""
        return unpack(*self.raw("audio", utterance_id), self.dtype)

    def text(self, utterance_id: str) -> AnyArray:
        """Text states [tokens, text_dim], like `audio`."""
        return unpack(*self.raw("text", utterance_id), self.dtype)

    def raw(self, modality: str, utterance_id: str) -> tuple[AnyArray, FloatArray | None]:
        """Stored values [length, dim] (a view of the mapped file) and int8 scales [dim]."""
        shard, batch, row = self._place[self._row_of(utterance_id)]
        dim = self.audio_dim if modality == "audio" else self.text_dim
        return self._batches(int(shard))[batch].raw(modality, int(row), dim)

    def _row_of(self, utterance_id: str) -> int:
        row = self._row.get(utterance_id)
        return int(self.rows([utterance_id])[0]) if row is None else row

    def _batches(self, shard: int) -> list[_Batch]:
        found = self._shards.get(shard)
        if found is None:
            path = self.folder / SHARDS / self._files[shard]["file"]
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
            except (OSError, pa.ArrowInvalid) as error:
                raise MultistillError(
                    f"the shard {path} cannot be read ({error}); remove the folder "
                    f"{self.folder} and run the features stage again"
                ) from error
            found = [
                _Batch(reader.get_batch(i), self.dtype) for i in range(reader.num_record_batches)
            ]
            self._shards[shard] = found
        return found

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            MultistillError: naming the first shard that differs.
        """
        for entry in self.info["shards"]:
            path = self.folder / SHARDS / entry["file"]
            if not path.exists() or file_digest(path) != entry["blake2b"]:
                raise MultistillError(
                    f"the shard {path} does not match its checksum; remove the folder "
                    f"{self.folder} and run the features stage again"
                )


def file_digest(path: Path) -> str:
    """BLAKE2b-128 of a file, as in the shard markers."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def finish_store(
    folder: Path, markers: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Index the finished shards and write features.json; returns its content.

    Raises:
        MultistillError: nothing was encoded, or one utterance stands in two places.
    """
    shards = [
        {key: marker[key] for key in ("shard", "file", "rows", "bytes", "blake2b")}
        for marker in markers
        if marker["rows"]
    ]
    _write_index(folder, shards)
    kept = {entry["file"] for entry in shards}
    for path in (folder / SHARDS).glob("*.arrow"):
        if path.name not in kept:
            path.unlink()
    info = {"format": FORMAT, **facts, "shards": shards}
    write_json(folder / FACTS, info)
    return info


def _write_index(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    tables = []
    for entry in shards:
        with pa.memory_map(str(folder / SHARDS / entry["file"])) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                rows = len(batch)
                columns = {
                    "utterance_id": pa.array(batch.column("utterance_id").to_pylist(), pa.string()),
                    "shard": pa.array(np.full(rows, entry["shard"], np.int32)),
                    "batch": pa.array(np.full(rows, number, np.int32)),
                    "row": pa.array(np.arange(rows, dtype=np.int32)),
                    "audio_frames": pa.array(batch.column("audio_frames").to_numpy().copy()),
                    "text_tokens": pa.array(batch.column("text_tokens").to_numpy().copy()),
                }
                tables.append(pa.table(columns))
    if not tables:
        raise MultistillError(f"no clip could be encoded; see {folder / QUARANTINE}")
    index = pa.concat_tables(tables).combine_chunks().sort_by("utterance_id")
    if len(index.column("utterance_id").unique()) != len(index):
        raise MultistillError(
            f"an utterance stands twice in {folder}; remove the folder and run again"
        )
    with atomic_path(folder / INDEX) as temporary:
        pq.write_table(index, temporary)
