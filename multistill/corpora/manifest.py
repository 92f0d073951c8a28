"""The manifest: one row per utterance, with the same columns for every corpus."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from multistill.corpora.rows import ROW_GROUP, Columns, tables
from multistill.corpora.text import normal_text
from multistill.damaged import read_table, reading
from multistill.errors import MultistillError
from multistill.typing import FloatArray, IntArray
from multistill.workspace import to_json

MANIFEST = "manifest.parquet"
REJECTED = "rejected.parquet"
NOTES = "notes.parquet"
QUALITY = "quality.json"
UNLABELLED = "unlabelled"
"""The part (`split`) of corpora without labels (`multistill.corpora.unlabelled`)."""
_HASH_BATCH = 8192  # strings converted to Python objects at a time
_COMPARED = ["utterance_id", "audio_digest", "text", "label_soft", "split"]
_CLASSES = "classes"  # key of the schema's metadata


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable)


MANIFEST_FIELDS = (
    _field("utterance_id", pa.string()),
    _field("corpus", pa.string()),
    _field("session", pa.string()),
    _field("dialogue", pa.string()),
    _field("turn", pa.int32()),
    _field("speaker", pa.string()),
    _field("gender", pa.string(), nullable=True),
    _field("age", pa.float32(), nullable=True),
    _field("style", pa.string(), nullable=True),
    _field("audio_path", pa.string()),
    _field("num_samples", pa.int64()),
    _field("sample_rate", pa.int32()),
    _field("duration_s", pa.float64()),
    _field("text", pa.string()),
    _field("text_raw", pa.string()),
    # Not a fixed-size list: Arrow reads those back from Parquet only without nulls.
    _field("votes", pa.list_(pa.int32()), nullable=True),
    _field("label", pa.string(), nullable=True),
    _field("label_soft", pa.list_(pa.float32())),  # of fixed size: see `manifest_schema`
    _field("valence", pa.float32(), nullable=True),
    _field("arousal", pa.float32(), nullable=True),
    _field("dominance", pa.float32(), nullable=True),
    _field("split", pa.string()),  # train, valid, test or unlabelled
    _field("fold", pa.int32()),
    _field("group", pa.string()),
    _field("audio_digest", pa.string()),
)
MANIFEST_COLUMNS = tuple(field.name for field in MANIFEST_FIELDS)
"""Columns in order. `utterance_id`, `session`, `dialogue` and `speaker` start with the corpus's
title and a slash, so they are unique over corpora; `session` and `speaker` are empty if the corpus
does not give them. `age` is in years, `style` says whether a clip is `scripted` or `improvised`,
each null if the corpus does not tell. `votes` and `label_soft` follow the order of the classes,
which the metadata name; of an utterance without any class, which has a dimension then or is of a
corpus without labels, `label_soft` is zero everywhere. `label` is null on a tie and without any
class, `valence`, `arousal` and `dominance` are from 1 to 5, `duration_s` is in seconds, `fold` is
-1 for test and for corpora without labels, which `split` has as `unlabelled`. `group` names what
the split keeps together, the unit of the evaluation's intervals (`multistill.corpora.groups`).
`audio_digest` is a digest of the whole file (`multistill.audio.digests`)."""

REJECTED_SCHEMA = pa.schema([_field("source", pa.string()), _field("reason", pa.string())])
NOTES_SCHEMA = pa.schema([_field(name, pa.string()) for name in ("source", "kind", "text")])


def manifest_schema(classes: Sequence[str]) -> pa.Schema:
    """The columns for these classes, which the schema's metadata name in order."""
    shares = pa.list_(pa.float32(), len(classes))
    fields = [
        each.with_type(shares) if each.name == "label_soft" else each for each in MANIFEST_FIELDS
    ]
    return pa.schema(fields, metadata=with_classes(classes))


def with_classes(classes: Sequence[str]) -> dict[str, str]:
    """Metadata of an Arrow schema that name the classes in order."""
    return {_CLASSES: to_json(list(classes))}


def classes_of(table: Columns | pa.Schema) -> tuple[str, ...]:
    """The classes in order that a table's metadata name.

    Raises:
        MultistillError: they name none.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    text = (schema.metadata or {}).get(_CLASSES.encode())
    if text is None:
        raise MultistillError(
            "a table names no classes: another version of multistill has written it"
        )
    return tuple(json.loads(text))


def read_classes(folder: Path) -> tuple[str, ...]:
    """The classes in order of the manifest in a folder."""
    with reading(folder / MANIFEST):
        return classes_of(pq.read_schema(folder / MANIFEST))


def write_manifest(rows: Columns, folder: Path) -> Path:
    """Write `manifest.parquet`; the rows must have the columns of `manifest_schema`."""
    path = folder / MANIFEST
    schema = manifest_schema(classes_of(rows))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        if not len(rows):
            writer.write_table(schema.empty_table())
        for table in tables(rows, schema.names):  # a cast copies
            writer.write_table(table.cast(schema))
    return path


def hash_strings(
    column: pa.ChunkedArray, normalize: Callable[[str], str] = str
) -> npt.NDArray[np.uint64]:
    """64-bit hash of each string of a column after `normalize`, [N].

    Takes eight bytes per row, where Arrow's dictionary encoding would hold every string again.
    The chance that any two of a million different strings have the same hash is 3e-8.
    """
    hashes = np.empty(len(column), np.uint64)
    row = 0
    for chunk in column.chunks:
        for start in range(0, len(chunk), _HASH_BATCH):
            texts = map(normalize, chunk.slice(start, _HASH_BATCH).to_pylist())
            batch = [hash_string(text) for text in texts]
            hashes[row : row + len(batch)] = batch
            row += len(batch)
    return hashes


def hash_string(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


COMPARED_AS: Mapping[str, Callable[[str], str]] = {"text": normal_text, "audio_digest": str}
"""Columns whose contents are compared over the parts of a split, and what of them is compared."""


def hash_column(name: str) -> str:
    """Column of `build.BuildResult.rows` with the `content_hashes` of another one."""
    return f"{name}_hash"


def content_hashes(rows: Columns, name: str) -> npt.NDArray[np.uint64]:
    """64-bit hash of each value of a column of `COMPARED_AS` [N], `NOTHING` where it is empty."""
    if hash_column(name) in rows.schema.names:
        return rows[hash_column(name)].to_numpy()
    return hash_strings(rows[name], COMPARED_AS[name])


NOTHING = np.uint64(hash_string(""))


def read_manifest(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the manifest from its folder or its file.

    Raises:
        MultistillError: if it does not exist, or is not a manifest of this version.
    """
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise MultistillError(f"there is no manifest at {os.fspath(file)}; run the job again")
    with reading(file):
        schema = pq.read_schema(file)
    missing = [name for name in MANIFEST_COLUMNS if name not in schema.names]
    if _CLASSES.encode() not in (schema.metadata or {}):
        missing.append("the list of classes")
    if missing:
        raise MultistillError(
            f"{os.fspath(file)} is not a manifest of this version: it lacks {', '.join(missing)}; "
            "remove its folder and run the job again"
        )
    return read_table(file, columns=columns)


def data_digest(manifest: Path) -> str:
    """Digest of the data that models were trained and compared on: recordings, transcripts,
    votes and split.

    Metrics on different data cannot be compared, however similar the jobs are.
    """
    table = read_manifest(manifest, _COMPARED).sort_by("utterance_id")
    state = hashlib.blake2b(digest_size=16)
    for batch in table.to_batches(max_chunksize=ROW_GROUP):
        state.update(repr(batch.to_pylist()).encode())
    return state.hexdigest()


def label_arrays(table: Columns) -> tuple[IntArray, FloatArray]:
    """Class index [N], -1 where the votes tie, and vote shares [N, C] of a manifest's rows.

    An utterance without any class has -1 and shares of zero (`has_class`).

    Args:
        table: rows with the columns `label` and `label_soft`.
    """
    shares = pc.list_flatten(table["label_soft"]).to_numpy()
    shares = shares.astype(np.float32).reshape(-1, len(classes_of(table)))
    return class_indices(table), shares


def class_indices(table: Columns) -> IntArray:
    """The part of `label_arrays` that tells each row's class [N]."""
    index = pc.index_in(table["label"].combine_chunks(), value_set=pa.array(classes_of(table)))
    return pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def has_class(shares: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Whether an utterance has a class or votes [N], from its shares [N, C]."""
    return np.asarray(shares.any(axis=1))


def tied(table: pa.Table) -> pa.ChunkedArray:
    """Whether the votes of a manifest's rows tie: an utterance without any class has no votes.

    Args:
        table: rows with the columns `label` and `votes`.
    """
    return pc.and_(pc.is_null(table["label"]), pc.is_valid(table["votes"]))


def dimension_array(table: Columns, dimensions: Sequence[str]) -> FloatArray:
    """Values [N, D] of a manifest's rows, from 1 to 5, NaN where there is none.

    Args:
        table: rows with a column for each of the `dimensions`.
    """
    columns = [table[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in dimensions]
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)
