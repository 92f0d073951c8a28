"""Tables on disk, row by row: CSV in whatever encoding, and Parquet. Never held whole."""

from __future__ import annotations

import codecs
import csv
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.corpora.records import Rejected
from multistill.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 16
_BATCH = 4096
_HELD = 128  # lines of a CSV in memory
_LIST = "lists"


@dataclass(frozen=True)
class Table:
    """A table whose header has been read.

    Attributes:
        place: how rows are named in messages, before `:row`.
        header: column names in NFC without surrounding white space.
        encoding: of a CSV; None for Parquet.
        odd: columns of a Parquet table that hold neither text nor numbers -> their type.
    """

    path: Path
    place: str
    header: tuple[str, ...]
    encoding: str | None
    delimiter: str = ","
    odd: Mapping[str, str] = field(default_factory=dict)

    def require(self, names: Sequence[str]) -> None:
        """Raise UsageError, naming file, row and column, for the first name not in the header."""
        for name in names:
            if name not in self.header:
                raise UsageError(
                    f"{self.path}: row 1: no column `{name}`; found {', '.join(self.header)}"
                )

    def require_text(self, names: Iterable[str], lists: Sequence[str] = ()) -> None:
        """Raise UsageError for the first of these columns that Parquet keeps as something else.

        Args:
            lists: columns that may also hold lists.
        """
        for name in names:
            kind = self.odd.get(name)
            if kind is not None and not (name in lists and kind == _LIST):
                raise UsageError(
                    f"{self.path}: column `{name}` holds {kind}; save it as text or numbers"
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
            found = csv_rows(stream, self.delimiter)
            next(found)
            for line, cells in found:
                where = f"{self.place}:{line}"
                if isinstance(cells, str):
                    yield Rejected(where, cells)
                elif len(cells) == width:
                    yield where, cells
                else:
                    yield Rejected(
                        where, f"the row has {len(cells)} columns where the header has {width}"
                    )

    def _parquet(self) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    columns = [column.to_pylist() for column in batch.columns]
                    for values in zip(*columns, strict=True):
                        number += 1
                        yield f"{self.place}:{number}", values
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            what = " ".join(str(error).split())
            raise UsageError(
                f"{self.path}: cannot be read after row {number}: {what}; "
                "the file is damaged, copy it again"
            ) from error


def csv_rows(stream: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str] | str]]:
    """The line that a row starts in and its cells, or the reason why it has none.

    The first row is the header; after it, rows without a word are skipped. A cell may hold line
    breaks. A stray quote costs its own line only: the rows that it would make one cell of are
    read again without it.
    """
    coming = iter(stream)
    block: list[str] = []  # the row that is being read and what has been read beyond it
    line = first = 1  # where that row starts, and the block
    width, ended = 0, False

    def feed() -> Iterator[str]:
        nonlocal block, first, ended
        yield from block[line - first :]
        while more := list(islice(coming, _HELD)):
            block, first = block[line - first :] + more, line
            yield from more
        ended = True

    reader, before = csv.reader(feed(), delimiter=delimiter), 0
    while True:
        problem = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a cell of 128 KiB, for the most part
            problem = str(error)
            cells = []
        after = before + reader.line_num
        if ended or after > line:
            if ended:
                problem = "is never closed"
            elif problem:
                problem = "runs on over more lines than a cell has"
            elif _swallows(cells, delimiter, width):
                problem = f"closes in line {after}, beyond other rows"
            if problem:
                problem = f"a quote that opens here {problem}; close it, or write it twice"
        if problem:
            yield line, problem
            before, ended = line, False
            line += 1
            reader = csv.reader(feed(), delimiter=delimiter)
            continue
        if not width or any(map(str.strip, cells)):
            yield line, cells
        width = width or len(cells)
        line = after + 1


def _swallows(cells: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether a row of several lines is several rows that a stray quote has joined.

    They then miss the right number of columns, or a cell reads as the end of a row, whole
    rows and the start of another. In the header (no width yet) no cell has both.
    """
    if not width:
        return any(delimiter in cell and len(cell.splitlines()) > 1 for cell in cells)
    if len(cells) != width:
        return True
    for cell in cells:
        parts = [part.count(delimiter) for part in cell.splitlines()]
        ends = parts[:1] + parts[-1:]
        if len(parts) > 1 and sum(ends) == width - 1 and all(n == width - 1 for n in parts[1:-1]):
            return True
    return False


def open_table(path: Path, place: str) -> Table:
    """Find out how a table is written and read its header.

    Raises:
        UsageError: where it is neither CSV in UTF-8 or CP949 nor Parquet, or has no header.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"PAR1":
        columns = _parquet_columns(path)
        names = _names(path, [name for name, _ in columns])
        odd = {name: kind for name, (_, kind) in zip(names, columns, strict=True) if kind}
        return Table(path, place, names, None, odd=odd)
    encoding = find_encoding(path)
    with path.open(encoding=encoding, newline="") as stream:
        line = stream.readline()
        delimiter = max(",\t;", key=line.count)
        stream.seek(0)
        _, header = next(csv_rows(stream, delimiter), (1, []))
    if isinstance(header, str):
        raise UsageError(f"{path}: row 1: {header}")
    return Table(path, place, _names(path, header), encoding, delimiter)


def _parquet_columns(path: Path) -> list[tuple[str, str]]:
    """SeenIds, and what the column holds where that is neither text nor numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file: {error}") from error
    return [(field.name, _odd(field.type)) for field in schema]


def _odd(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if listed:
        return "lists of lists or structs" if types.is_nested(kind.value_type) else _LIST
    if "binary" in str(kind):
        return "bytes"
    return f"values of type {kind}" if types.is_nested(kind) else ""


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
