"""What is told beside the manifest: rows left out with the reason, and notes on rows that stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.corpora.manifest import NOTES_SCHEMA, REJECTED_SCHEMA
from multistill.corpora.paths import utf8

_EXAMPLES = 10
_HELD = 8192  # notes as Python objects, before they are compressed


class Examples:
    """How often something was found, with the first few cases."""

    def __init__(self) -> None:
        self.count = 0
        self.cases: list[str] = []

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < _EXAMPLES:
            self.cases.append(utf8(case))

    def merge(self, other: Examples) -> None:
        self.count += other.count
        self.cases += other.cases[: _EXAMPLES - len(self.cases)]

    def json(self) -> dict[str, Any]:
        return {"count": self.count, "examples": self.cases}


class Rejections:
    """What is left out, as the columns of `rejected.parquet`, and how many of each sort."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.reasons: list[str] = []
        self.sorts: Counter[str] = Counter()

    def add(self, sort: str, source: str, reason: str) -> None:
        self.sorts[sort] += 1
        self.sources.append(utf8(source))
        self.reasons.append(utf8(reason))

    def merge(self, other: Rejections) -> None:
        self.sorts.update(other.sorts)
        self.sources += other.sources
        self.reasons += other.reasons

    def __len__(self) -> int:
        return len(self.sources)

    def table(self) -> pa.Table:
        return pa.table([self.sources, self.reasons], schema=REJECTED_SCHEMA)


class Notes:
    """All notes: counted by kind, and whole, as `notes.parquet` has them.

    A corpus may say something of each of its rows, so what is collected is held as that
    file's compressed bytes. (Written to the stage's folder as they come, they would stay
    there when the split is refused.)
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Examples] = {}
        self._held: list[tuple[str, str, str]] = []
        self._bytes: pa.BufferOutputStream | None = None
        self._file: pq.ParquetWriter | None = None

    def add(self, source: str, kind: str, text: str) -> None:
        self.kinds.setdefault(kind, Examples()).add(f"{source}: {text}")
        self._held.append((utf8(source), kind, utf8(text)))

    def merge(self, other: Notes) -> None:
        for kind, cases in other.kinds.items():
            self.kinds.setdefault(kind, Examples()).merge(cases)
        self._held += other._held
        if len(self._held) >= _HELD:
            self._compress()

    def _compress(self) -> None:
        if self._file is None:
            self._bytes = pa.BufferOutputStream()
            self._file = pq.ParquetWriter(self._bytes, NOTES_SCHEMA, compression="zstd")
        rows = [dict(zip(NOTES_SCHEMA.names, told, strict=True)) for told in self._held]
        self._file.write_table(pa.Table.from_pylist(rows, NOTES_SCHEMA))
        self._held.clear()

    def json(self) -> dict[str, Any]:
        return {kind: found.json() for kind, found in sorted(self.kinds.items())}

    def write(self, path: Path) -> None:
        """Write the file; nothing can be added after it."""
        self._compress()
        assert self._file is not None and self._bytes is not None
        self._file.close()
        with path.open("wb") as stream:
            stream.write(self._bytes.getvalue())
