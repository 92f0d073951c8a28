"""Tables on disk, row by row: CSV in whatever encoding, and Parquet. Never held whole."""

from __future__ import annotations

import codecs
import csv
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.corpora.records import Rejected
from multistill.errors import UsageError

_CHUNK = 1 << 16
_BATCH = 4096


@dataclass(frozen=True)
class Table:
    """A table whose header has been read.

    Attributes:
        place: how rows are named in messages, before `:row`.
        header: column names in NFC without surrounding white space.
        encoding: of a CSV; None for Parquet.
    """

    path: Path
    place: str
    header: tuple[str, ...]
    encoding: str | None
    delimiter: str = ","

    def require(self, names: Sequence[str]) -> None:
        """Raise UsageError, naming file, row and column, for the first name not in the header."""
        for name in names:
            if name not in self.header:
                raise UsageError(
                    f"{self.path}: row 1: no column `{name}`; found {', '.join(self.header)}"
                )

    def rows(self) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        """`(place:row, values)` in the header's order.

        Row 1 of a CSV is its header, of Parquet its first row of values.
        """
        if self.encoding is None:
            yield from self._parquet()
        else:
            yield from self._csv(self.encoding)

    def _csv(self, encoding: str) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        width = len(self.header)
        with self.path.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=self.delimiter)
            try:
                next(reader)
                for cells in reader:
                    if not any(map(str.strip, cells)):
                        continue
                    where = f"{self.place}:{reader.line_num}"
                    if len(cells) != width:
                        yield Rejected(
                            where, f"the row has {len(cells)} columns where the header has {width}"
                        )
                    else:
                        yield where, cells
            except csv.Error as error:
                raise UsageError(f"{self.path}: row {reader.line_num}: {error}") from error

    def _parquet(self) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        import pyarrow.parquet as pq

        number = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield f"{self.place}:{number}", values


def open_table(path: Path, place: str) -> Table:
    """Find out how a table is written and read its header.

    Raises:
        UsageError: where it is neither CSV in UTF-8 or CP949 nor Parquet, or has no header.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"PAR1":
        return Table(path, place, _names(path, _parquet_header(path)), None)
    encoding = find_encoding(path)
    with path.open(encoding=encoding, newline="") as stream:
        line = stream.readline()
        delimiter = max(",\t;", key=line.count)
        stream.seek(0)
        header = next(csv.reader(stream, delimiter=delimiter), [])
    return Table(path, place, _names(path, header), encoding, delimiter)


def _parquet_header(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file: {error}") from error


def _names(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(unicodedata.normalize("NFC", name).strip() for name in header)
    if not any(names):
        raise UsageError(f"{path}: row 1: no header with column names")
    for name in names:
        if name and names.count(name) > 1:
            raise UsageError(f"{path}: row 1: two columns are called `{name}`; rename one")
    return names


def find_encoding(path: Path) -> str:
    """`utf-8-sig`, `utf-8` or `cp949`: the first that the whole file is text in.

    Raises:
        UsageError: where none is; names the row that is no text.
    """
    with path.open("rb") as stream:
        marked = stream.read(3) == codecs.BOM_UTF8
    names = ("utf-8-sig",) if marked else ("utf-8", "cp949")
    row = 0
    for name in names:
        bad = _undecodable_row(path, name)
        if bad is None:
            return name
        row = max(row, bad)
    raise UsageError(
        f"{path}: row {row}: text in none of utf-8-sig, utf-8, cp949; save the table as UTF-8"
    )


def _undecodable_row(path: Path, encoding: str) -> int | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    row = 1
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return row + chunk[: error.start].count(b"\n")
            if "\0" in text:
                # UTF-16 of Latin letters is valid UTF-8 with a zero beside each letter.
                return row + text[: text.index("\0")].count("\n")
            row += text.count("\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return row
    return None
