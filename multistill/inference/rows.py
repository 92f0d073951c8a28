"""Predictions as rows: JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from multistill.corpora.paths import printable
from multistill.errors import UsageError
from multistill.full_disk import is_full, writing
from multistill.inference.predictor import Prediction
from multistill.workspace import atomic_path

Row = Mapping[str, Any]
FORMATS = (".jsonl", ".csv", ".parquet")


def row_of(name: str, result: Prediction | str) -> Row:
    """A row with the clip's id, of a prediction or of the reason why there is none."""
    name = printable(name)  # of a file, whose name may be no UTF-8
    if isinstance(result, str):
        return {"id": name, "error": printable(result)}
    return {"id": name, **asdict(result)}


def to_json_line(row: Row, *, ascii_only: bool = False) -> str:
    return json.dumps(row, ensure_ascii=ascii_only, allow_nan=False, default=list) + "\n"


@contextmanager
def writer(
    path: Path, labels: Sequence[str], dimensions: Sequence[str]
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """A function that writes rows; the file appears when the context ends without an error.

    Args:
        labels: classes with a probability each; columns `p_...` of CSV and Parquet.
        dimensions: that are predicted.

    Raises:
        UsageError: the ending names no format, or the file cannot be written.
        FullDiskError: its disk is full.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UsageError(
            f"--out {path}: `{ending}` is no format; use an ending of {', '.join(FORMATS)}"
        )
    with writing(path.parent, "shards that were encoded"), ExitStack() as stack:
        try:
            temporary = stack.enter_context(atomic_path(path, concurrent=True))
            if ending == ".parquet":
                write = stack.enter_context(_parquet(temporary, labels, dimensions))
            else:
                stream = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
                write = _jsonl(stream) if ending == ".jsonl" else _csv(stream, labels, dimensions)
        except OSError as error:
            if is_full(error):
                raise
            reason = error.strerror or error
            raise UsageError(f"--out {path} cannot be written ({reason})") from error
        yield write


def _jsonl(stream: TextIO) -> Callable[[Sequence[Row]], None]:
    return lambda rows: stream.writelines(map(to_json_line, rows))


def _csv(
    stream: TextIO, labels: Sequence[str], dimensions: Sequence[str]
) -> Callable[[Sequence[Row]], None]:
    table = csv.DictWriter(stream, list(_flat({"id": ""}, labels, dimensions)))
    table.writeheader()
    return lambda rows: table.writerows(_flat(row, labels, dimensions) for row in rows)


@contextmanager
def _parquet(
    path: Path, labels: Sequence[str], dimensions: Sequence[str]
) -> Iterator[Callable[[Sequence[Row]], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {*(f"p_{label}" for label in labels), *dimensions, "milliseconds"}
    names = _flat({"id": ""}, labels, dimensions)
    schema = pa.schema(
        [pa.field(name, pa.float64() if name in numbers else pa.string()) for name in names]
    )
    with pq.ParquetWriter(path, schema) as file:
        yield lambda rows: file.write_table(
            pa.Table.from_pylist([_flat(row, labels, dimensions) for row in rows], schema=schema)
        )


def _flat(row: Row, labels: Sequence[str], dimensions: Sequence[str]) -> dict[str, Any]:
    """The columns of a row; None where it has no value."""
    shares, values = row.get("distribution", {}), row.get("dimensions", {})
    return {
        "id": row["id"],
        "label": row.get("label"),
        **{f"p_{label}": shares.get(label) for label in labels},
        **{name: values.get(name) for name in dimensions},
        "missing": " ".join(row.get("missing", ())) or None,
        "notes": "; ".join(row.get("notes", ())) or None,
        "error": row.get("error"),
        "milliseconds": row.get("milliseconds", {}).get("total"),
        "model": row.get("model"),
    }
