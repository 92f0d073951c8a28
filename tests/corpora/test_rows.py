"""Rows on disk are what a table in memory would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.rows import Rows, RowWriter, tables

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("speaker", pa.dictionary(pa.int32(), pa.string())),
        ("turn", pa.int32()),
        ("shares", pa.list_(pa.float32(), 2)),
    ],
    metadata={"classes": "[]"},
)


def make_table(groups: list[int], names: int) -> pa.Table:
    """A table whose groups of rows have dictionaries of their own."""
    parts, start = [], 0
    for size in groups:
        rows = []
        for n in range(start, start + size):
            speaker = f"p{n % names}" if n % 5 else None
            rows.append({"id": f"clip {n}", "speaker": speaker, "turn": n, "shares": [n, 0.5]})
        parts.append(pa.Table.from_pylist(rows, schema=SCHEMA))
        start += size
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def stored(table: pa.Table, groups: list[int], folder: Path | None = None) -> Rows:
    writer = RowWriter(table.schema, folder)
    start = 0
    for size in groups:
        writer.write(table.slice(start, size))
        start += size
    return writer.rows()


def assert_same(rows: Rows, table: pa.Table, size: int) -> None:
    names = table.column_names
    assert len(rows) == len(table)
    assert rows.select(names).to_pylist() == table.to_pylist()
    assert [rows[name].to_pylist() for name in names] == [table[name].to_pylist() for name in names]
    for chosen in (names, ["turn"], [names[-1]]):
        parts = list(tables(rows, chosen, size))
        assert [part.to_pylist() for part in parts] == [
            part.to_pylist() for part in tables(table, chosen, size)
        ]
        assert all(part.column_names == chosen for part in parts)
    backwards = np.arange(len(table))[::-2]
    assert rows.take("id", backwards) == table["id"].take(pa.array(backwards)).to_pylist()


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), max_size=4),
    names=st.integers(1, 4),
    size=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_filtered_split_extended_rows_are_those_of_a_table(
    groups: list[int], names: int, size: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    table = make_table(groups, names)
    rows = stored(table, groups)
    assert rows.schema.equals(table.schema, check_metadata=True)
    assert_same(rows, table, size)
    parts: list[tuple[Rows, pa.Table]] = []
    chosen = random.random(len(table)) < 0.6
    for mask in (chosen, ~chosen):  # as corpora with and without labels
        of_file, of_memory = rows.filter(mask), table.filter(pa.array(mask))
        assert_same(of_file, of_memory, size)
        part = pa.array(random.integers(0, 3, len(of_memory)).astype(str)).dictionary_encode()
        of_file = of_file.append_column("split", part)
        of_memory = of_memory.append_column("split", part)
        kept = random.random(len(of_memory)) < 0.7  # as the caps of classes
        parts.append((of_file.filter(kept), of_memory.filter(pa.array(kept))))
        assert_same(*parts[-1], size)
    joined = pa.concat_tables([part for _, part in parts]).unify_dictionaries()
    assert_same(parts[0][0].extended(parts[1][0]), joined, size)


def test_a_dictionary_is_the_same_in_all_chunks_of_a_column() -> None:
    rows = stored(make_table([5, 5, 5], 3), [5, 5, 5])
    chunks = rows["speaker"].chunks
    assert len(chunks) > 1
    assert all(chunk.dictionary.equals(chunks[0].dictionary) for chunk in chunks)


def test_the_file_is_in_the_folder_while_rows_are_written_and_gone_with_a_failure(
    tmp_path: Path,
) -> None:
    writer = RowWriter(SCHEMA, tmp_path)
    writer.write(make_table([3], 1))
    assert len(list(tmp_path.iterdir())) == 1
    rows = writer.rows()
    assert not list(tmp_path.iterdir()), "nobody sees a file that a killed process would leave"
    assert len(rows.select(["id"])) == 3
    failed = RowWriter(SCHEMA, tmp_path)
    with pytest.raises(ValueError, match="schema"):
        failed.write(make_table([3], 1).select(["id"]))
    del failed
    assert not list(tmp_path.iterdir())
