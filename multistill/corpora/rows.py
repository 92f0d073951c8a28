"""The rows of all corpora while a manifest is made: on disk, one column in memory at a time.

A million rows take 360 MB as an Arrow table. Splitting, the leak guard and the quality report go
over one or two columns each, so `Rows` keeps all of them in a compressed file of the job's folder,
reads a column when it is asked for, and keeps in memory only which rows are left, and the columns
that were added since.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.typing import BoolArray

ROW_GROUP = 65_536  # rows of the file, and of the manifest


class Rows:
    """Rows with the part of `pyarrow.Table` that making a manifest needs.

    Args:
        file: where they are stored.
        kept: which of the stored rows these are [M each]; those of the first mask come first.
        added: columns in memory [N].
    """

    def __init__(self, file: _File, kept: Sequence[BoolArray], added: dict[str, Any]) -> None:
        self._file, self._kept, self._added = file, list(kept), added

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self._kept)

    @property
    def schema(self) -> pa.Schema:
        """Of the columns that are stored, with their metadata."""
        return self._file.schema

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """A whole column; the chunks of one that is dictionary-encoded share their dictionary."""
        if name in self._added:
            return self._added[name]
        field = self.schema.field(name)
        chunks = [chunk for batch in self._stored([name]) for chunk in batch[name].chunks]
        column = pa.chunked_array(chunks, field.type)
        return column.unify_dictionaries() if pa.types.is_dictionary(field.type) else column

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns as a table in memory."""
        fields = [
            self.schema.field(name)
            if name not in self._added
            else pa.field(name, self._added[name].type)
            for name in names
        ]
        schema = pa.schema(fields, metadata=self.schema.metadata)
        return pa.table([self[name] for name in names], schema=schema)

    def tables(self, names: Sequence[str], size: int = ROW_GROUP) -> Iterator[pa.Table]:
        """Some columns in order, in tables of `size` rows, which are read one after another."""
        stored = [name for name in names if name not in self._added]
        waiting: list[pa.Table] = []
        rows = start = 0
        for part in self._stored(stored or self.schema.names[:1]):
            for name in names:
                if name in self._added:
                    part = part.append_column(name, self._added[name].slice(start, len(part)))
            start += len(part)
            waiting.append(part.select(list(names)))
            rows += len(part)
            while rows >= size:
                table = pa.concat_tables(waiting)
                yield table.slice(0, size)
                waiting = [table.slice(size)]
                rows -= size
        if rows:
            yield pa.concat_tables(waiting)

    def _stored(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Stored columns of the rows that are left, by row group."""
        for mask in self._kept:
            start = 0
            for table in self._file.row_groups(names):
                there = mask[start : start + len(table)]
                start += len(table)
                if there.all():
                    yield table
                elif there.any():
                    yield table.filter(pa.array(there))

    def take(self, name: str, rows: npt.NDArray[np.integer]) -> list[Any]:
        """Values of a few rows, by their position."""
        found: list[Any] = [None] * len(rows)
        start = 0
        for table in self.tables([name]):
            places = np.flatnonzero((rows >= start) & (rows < start + len(table)))
            values = table[name].take(pa.array(rows[places] - start)).to_pylist()
            for place, value in zip(places, values, strict=True):
                found[place] = value
            start += len(table)
        return found

    def filter(self, keep: BoolArray) -> Rows:
        """The rows where `keep` [N] is true."""
        if keep.all():
            return self
        kept, start = [], 0
        for mask in self._kept:
            stop = start + int(mask.sum())
            narrower = mask.copy()
            narrower[mask] = keep[start:stop]
            kept.append(narrower)
            start = stop
        chosen = pa.array(keep)
        return Rows(
            self._file, kept, {name: column.filter(chosen) for name, column in self._added.items()}
        )

    def append_column(self, name: str, column: pa.Array) -> Rows:
        """The rows with another column [N], which stays in memory."""
        return Rows(
            self._file, self._kept, {**self._added, name: pa.chunked_array([column], column.type)}
        )

    def extended(self, other: Rows) -> Rows:
        """These rows and then those of `other`, which are stored in the same file."""
        added = {
            name: pa.chunked_array([*column.chunks, *other[name].chunks]).unify_dictionaries()
            for name, column in self._added.items()
        }
        return Rows(self._file, [*self._kept, *other._kept], added)

    def to_pylist(self) -> list[dict[str, Any]]:
        """All rows as Python objects, for a few."""
        return self.select([*self.schema.names, *self._added]).to_pylist()


Columns: TypeAlias = "pa.Table | Rows"
"""Rows whose columns are got by name."""


def tables(rows: Columns, names: Sequence[str], size: int = ROW_GROUP) -> Iterator[pa.Table]:
    """Some columns in tables of `size` rows; the last one has fewer."""
    if isinstance(rows, Rows):
        yield from rows.tables(names, size)
        return
    chosen = rows.select(list(names))
    for start in range(0, len(chosen), size):
        yield chosen.slice(start, size)


class RowWriter:
    """Stores tables of one schema as `Rows`, in a file that nobody else sees.

    Args:
        folder: on a disk with room for the compressed rows; None: the system's for such files.
    """

    def __init__(self, schema: pa.Schema, folder: Path | None) -> None:
        self.schema = schema
        self._file = tempfile.NamedTemporaryFile(prefix=".rows-", dir=folder)  # noqa: SIM115
        names = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        self._writer = pq.ParquetWriter(
            self._file.name, schema, compression="lz4", use_dictionary=names
        )
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Store rows as a row group; readers hold a column of one in memory."""
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
            self._rows += len(table)

    def rows(self) -> Rows:
        """All rows; none can be stored afterwards."""
        self._writer.close()
        with self._file:  # the name goes, the opened file stays
            return Rows(_File(self._file.name, self.schema), [np.ones(self._rows, bool)], {})


class _File:
    def __init__(self, name: str, schema: pa.Schema) -> None:
        self.schema = schema
        self._source = pa.OSFile(name)
        self._encoded = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        self._metadata = pq.read_metadata(self._source)

    def row_groups(self, names: Sequence[str]) -> Iterator[pa.Table]:
        file = pq.ParquetFile(
            self._source, metadata=self._metadata, read_dictionary=self._encoded, pre_buffer=False
        )
        schema = pa.schema(
            [self.schema.field(name) for name in names], metadata=self.schema.metadata
        )
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(names), use_threads=False).cast(schema)
