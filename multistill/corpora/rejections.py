"""Records written beside the manifest: rejected rows with reasons, and notes on kept rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.corpora.manifest import NOTES_SCHEMA, REJECTED_SCHEMA
from multistill.corpora.paths import printable

_EXAMPLES = 10
_BATCH = 8192  # notes held as Python objects before they are compressed


class Examples:
    """Number of cases of something, with the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self.cases: list[str] = []

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < _EXAMPLES:
            self.cases.append(printable(case))

    def json(self) -> dict[str, Any]:
        return {"count": self.count, "examples": self.cases}


def kind_of(reason: str) -> str:
    """What is wrong, without the row that it is wrong with: its name and its numbers.

    Examples:
        >>> kind_of("c01: no wav file in wav/Session07")
        'no wav file in wav/Session#'
        >>> kind_of("no such file: clips/a.wav")
        'no such file'
    """
    first, colon, rest = reason.partition(": ")
    if colon and " " not in first:
        reason = rest
    if reason.startswith("label `"):
        return reason  # which label it is matters, and what it may be mapped to
    reason = re.sub(r"^('[^']*'|`[^`]*`|\S*[\d/]\S*) (?=is |belongs )", "", reason)
    return re.sub(r"\d+", "#", re.split(r": |;", reason, maxsplit=1)[0])


class Rejections:
    """Rejected rows as the columns of `rejected.parquet`, and their number by category.

    Attributes:
        kinds: number by what is wrong, without the names of the rows.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.reasons: list[str] = []
        self.categories: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._first: dict[str, dict[str, str]] = {}

    def add(self, category: str, source: str, reason: str, kind: str | None = None) -> None:
        """Add a rejected row.

        Args:
            kind: what rows with the same problem share; default: the reason without the row's
                name and its numbers.
        """
        self.categories[category] += 1
        kind = printable(kind or kind_of(reason))
        self.kinds[kind] += 1
        self.sources.append(printable(source))
        self.reasons.append(printable(reason))
        self._first.setdefault(kind, {"source": self.sources[-1], "reason": self.reasons[-1]})

    def commonest(self) -> str:
        """The three commonest kinds with their numbers, for a message."""
        return "; ".join(f"{count} x {kind}" for kind, count in self.kinds.most_common(3))

    def groups(self, most: int = 3) -> list[dict[str, Any]]:
        """The commonest kinds: `count`, `kind`, and `source` and `reason` of the first row."""
        return [
            {"count": count, "kind": kind, **self._first[kind]}
            for kind, count in self.kinds.most_common(most)
        ]

    def __len__(self) -> int:
        return len(self.sources)

    def table(self) -> pa.Table:
        return pa.table([self.sources, self.reasons], schema=REJECTED_SCHEMA)


class Notes:
    """All notes: examples by kind, and the complete list for `notes.parquet`.

    A corpus may cause a note for each of its rows, so they are held as the compressed bytes of
    that file. They are not written to the stage's folder as they come, because they would stay
    there if the split is refused.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Examples] = {}
        self._batch: list[tuple[str, str, str]] = []
        self._buffer = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._buffer, NOTES_SCHEMA, compression="zstd")

    def add(self, source: str, kind: str, text: str) -> None:
        self.kinds.setdefault(kind, Examples()).add(f"{source}: {text}")
        self._batch.append((printable(source), kind, printable(text)))
        if len(self._batch) >= _BATCH:
            self._compress()

    def _compress(self) -> None:
        columns = list(zip(*self._batch, strict=True)) or [(), (), ()]
        self._writer.write_table(pa.table([list(c) for c in columns], schema=NOTES_SCHEMA))
        self._batch.clear()

    def json(self) -> dict[str, Any]:
        return {kind: examples.json() for kind, examples in sorted(self.kinds.items())}

    def write(self, path: Path) -> None:
        """Write the file; no note can be added afterwards."""
        self._compress()
        self._writer.close()
        path.write_bytes(self._buffer.getvalue())
