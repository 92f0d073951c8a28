"""What is told beside the manifest: nothing of it is lost, however much there is."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multistill.corpora import rejections as ledger
from multistill.corpora.rejections import Notes


@pytest.mark.parametrize("count", [0, 7, 100])
def test_notes_are_kept_whole_in_pieces(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_HELD", 16)
    notes, wanted = Notes(), []
    for at in range(count):
        chunk = Notes()
        chunk.add(f"k/{at}", "recount", "")
        chunk.add(f"k/{at}", "unknown vote", f"말 {at}")
        wanted += [(f"k/{at}", "recount", ""), (f"k/{at}", "unknown vote", f"말 {at}")]
        notes.merge(chunk)
        assert len(notes._held) < 16
    notes.write(tmp_path / "notes.parquet")
    rows = pq.read_table(tmp_path / "notes.parquet").to_pylist()
    assert [(row["source"], row["kind"], row["text"]) for row in rows] == wanted
    assert [found["count"] for found in notes.json().values()] == ([count] * 2 if count else [])
