"""Records of several corpora become one table."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.generators.parts import write_wav

from multistill.corpora import build
from multistill.corpora.build import build_manifest
from multistill.corpora.records import Note, Record, Rejected, Utterance


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Two utterances with the same id, a third one, a note and a rejected clip."""
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", number)

    def utterance(name: str, number: int) -> Utterance:
        path = str(tmp_path / f"{number}.wav")
        return Utterance(name, path, "s", "d", 0, "p", "말", "말", votes=(1, 0, 0, 0, 0, 0, 0))

    return [
        utterance("a", 0),
        Note("x", "recount", "differs"),
        utterance("a", 1),
        Rejected("y", "no wav"),
        utterance("b", 2),
    ]


def test_the_second_utterance_with_an_id_is_rejected(records: list[Record]) -> None:
    result = build_manifest([("own", records)], "soft")
    assert result.rows["utterance_id"].to_pylist() == ["own/a", "own/b"]
    assert result.rows["audio_path"][0].as_py().endswith("0.wav")
    assert result.rejections.table().to_pylist() == [
        {"source": "own/y", "reason": "no wav"},
        {"source": "own/a", "reason": "another utterance has this id"},
    ]
    assert result.notes.json() == {"recount": {"count": 1, "examples": ["own/x: differs"]}}


def test_the_result_does_not_depend_on_the_chunk_size(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = [("one", records), ("two", records[::-1])]
    expected = build_manifest(corpora, "soft")
    monkeypatch.setattr(build, "CHUNK", 2)
    monkeypatch.setattr(build, "_MERGED_CHUNKS", 2)
    result = build_manifest(corpora, "soft")
    assert result.rows.to_pylist() == expected.rows.to_pylist()
    assert result.rejections.table().equals(expected.rejections.table())
    assert (result.formats, result.ties) == (expected.formats, expected.ties)
