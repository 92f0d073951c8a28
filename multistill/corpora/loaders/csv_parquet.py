"""Streaming readers for CSV and Parquet tables, row by row."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from multistill.corpora.characters import visible
from multistill.corpora.encodings import KEEP_GOING, UNDECODABLE
from multistill.corpora.records import Rejected
from multistill.corpora.text import CorpusText
from multistill.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 4096  # rows of Parquet
_LINES = 128  # lines of a CSV read at a time
_LIST = "lists"


@dataclass(frozen=True)
class Table:
    """A table whose header has been read.

    Attributes:
        name: the table's name in messages; its rows are `name:row`.
        header: column names, see `column_name`.
        encoding: of a CSV; None for Parquet.
        unsupported: columns of a Parquet table that are neither text nor numbers -> their type.
    """

    path: Path
    name: str
    header: tuple[str, ...]
    encoding: str | None
    delimiter: str = ","
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def require(self, names: Sequence[str]) -> None:
        """Raise UsageError for the first of these columns that the header lacks."""
        for name in names:
            if name not in self.header:
                raise UsageError(
                    f"{self.path}: row 1: no column `{name}`; found {', '.join(self.header)}"
                )

    def require_text(self, names: Iterable[str], lists: Sequence[str] = ()) -> None:
        """Raise UsageError for the first of these columns that is neither text nor numbers.

        Args:
            lists: columns that may also contain lists.
        """
        for name in names:
            kind = self.unsupported.get(name)
            if kind is not None and not (name in lists and kind == _LIST):
                raise UsageError(
                    f"{self.path}: column `{name}` contains {kind}; save it as text or numbers"
                )

    def rows(self) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        """Yield `(name:row, values)` with values in the header's order.

        Row 1 of a CSV is its header, row 1 of Parquet its first row of values.
        """
        if self.encoding is None:
            yield from self._parquet()
        else:
            yield from self._csv(self.encoding)

    def _csv(self, encoding: str) -> Iterator[tuple[str, Sequence[Any]] | Rejected]:
        width = len(self.header)
        with _opened(self.path, encoding) as stream:
            rows = csv_rows(stream, self.delimiter)
            next(rows)
            for line, cells in rows:
                source = f"{self.name}:{line}"
                if isinstance(cells, str):
                    yield Rejected(source, cells)
                elif UNDECODABLE in (row := "".join(cells)) or "\0" in row:
                    yield Rejected(source, f"the row is not text in {encoding}")
                elif len(cells) == width:
                    yield source, cells
                else:
                    yield Rejected(
                        source, f"the row has {len(cells)} columns where the header has {width}"
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
                        yield f"{self.name}:{number}", values
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            message = " ".join(str(error).split())
            raise UsageError(
                f"{self.path}: cannot be read after row {number}: {message}; "
                "the file is damaged, copy it again"
            ) from error


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """A CSV, in which bytes that are not text in its encoding become `UNDECODABLE`.

    Raises:
        UsageError: the codec gives up.
    """
    try:
        with path.open(encoding=encoding, errors=KEEP_GOING, newline="") as stream:
            yield stream
    except UnicodeError as error:
        raise UsageError(
            f"{path}: not text in {encoding} ({error}); set `encoding` of the corpus, or save the "
            "table as UTF-8"
        ) from error


def csv_rows(stream: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str] | str]]:
    """Yield the line in which each row starts, with its cells or the reason why it is invalid.

    The first row is the header; after it, blank rows are skipped. A cell may contain line
    breaks. A stray quote invalidates only its own line: the lines that it would merge into one
    cell are parsed again without it.
    """
    lines = iter(stream)
    block: list[str] = []  # lines of the current row and those read ahead
    line = first = 1  # line numbers at which the current row and `block` start
    width, ended = 0, False

    def feed() -> Iterator[str]:
        nonlocal block, first, ended
        yield from block[line - first :]
        while more := list(islice(lines, _LINES)):
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
        except csv.Error as error:  # usually a cell of more than 128 KiB
            problem = str(error)
            cells = []
        after = before + reader.line_num
        if ended or after > line:
            if ended:
                problem = "is never closed"
            elif problem:
                problem = "spans more lines than a cell can have"
            elif _merges_rows(cells, delimiter, width):
                problem = f"closes in line {after}, after other rows"
            if problem:
                problem = f"the quote that opens here {problem}; close it, or write it twice"
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


def _merges_rows(cells: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether a row of several lines is several rows merged by a stray quote.

    Such a row has a wrong number of columns, or one of its cells reads as the end of a row,
    complete rows, and the start of a row. In the header (no width yet), a cell with both a
    delimiter and a line break is taken as merged.
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


def open_table(path: Path, name: str, texts: CorpusText) -> Table:
    """Detect a table's format, encoding and delimiter, and read its header.

    Args:
        name: the table's name in messages.
        texts: of the corpus, which decides the encoding of a CSV.

    Raises:
        UsageError: if it is neither CSV nor Parquet, has no header, or its encoding is unclear.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"PAR1":
        columns = _parquet_columns(path)
        header = _column_names(path, [column for column, _ in columns])
        kinds = zip(header, (kind for _, kind in columns), strict=True)
        unsupported = {column: kind for column, kind in kinds if kind}
        return Table(path, name, header, None, unsupported=unsupported)
    encoding = texts.encoding_of_table(path)
    with _opened(path, encoding) as stream:
        line = stream.readline()
        delimiter = max(",\t;", key=line.count)
        stream.seek(0)
        _, cells = next(csv_rows(stream, delimiter), (1, []))
    if isinstance(cells, str):
        raise UsageError(f"{path}: row 1: {cells}")
    if UNDECODABLE in line or "\0" in line:
        raise UsageError(
            f"{path}: row 1: not text in {encoding}; set `encoding` of the corpus, or save the "
            "table as UTF-8"
        )
    return Table(path, name, _column_names(path, cells), encoding, delimiter)


def _parquet_columns(path: Path) -> list[tuple[str, str]]:
    """Column names, each with its type if that is neither text nor numbers, else with `""`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file: {error}") from error
    return [(field.name, _unsupported_type(field.type)) for field in schema]


def _unsupported_type(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists of lists or structs" if types.is_nested(kind.value_type) else _LIST
    if "binary" in str(kind):
        return "bytes"
    return f"values of type {kind}" if types.is_nested(kind) else ""


def column_name(name: str) -> str:
    """A column name as it is compared: NFC, visible characters, no surrounding white space."""
    return visible(unicodedata.normalize("NFC", name)).strip()


def _column_names(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(map(column_name, header))
    if not any(names):
        raise UsageError(f"{path}: row 1: no header with column names")
    for name in names:
        if name and names.count(name) > 1:
            raise UsageError(f"{path}: row 1: two columns are named `{name}`; rename one")
    return names
