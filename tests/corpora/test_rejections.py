"""Notes: none is lost, whatever their number."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multistill.corpora import rejections
from multistill.corpora.rejections import Notes


@pytest.mark.parametrize("count", [0, 7, 100])
def test_all_notes_are_written_and_few_are_held_uncompressed(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "_BATCH", 16)
    notes, expected = Notes(), []
    for number in range(count):
        for kind, text in (("recount", ""), ("unknown vote", f"말 {number}")):
            notes.add(f"k/{number}", kind, text)
            expected.append((f"k/{number}", kind, text))
            assert len(notes._batch) < 16
    notes.write(tmp_path / "notes.parquet")
    rows = pq.read_table(tmp_path / "notes.parquet").to_pylist()
    assert [(row["source"], row["kind"], row["text"]) for row in rows] == expected
    counts = [examples["count"] for examples in notes.json().values()]
    assert counts == ([count] * 2 if count else [])
