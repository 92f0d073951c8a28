"""Records of several corpora become one table."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from helpers.generators.parts import write_wav

from multistill.config import CLASSES
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
    result = build_manifest([("own", records)], "soft", CLASSES)
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
    expected = build_manifest(corpora, "soft", CLASSES)
    monkeypatch.setattr(build, "CHUNK", 2)
    monkeypatch.setattr(build, "ROW_GROUP", 3)
    result = build_manifest(corpora, "soft", CLASSES)
    assert result.rows.to_pylist() == expected.rows.to_pylist()
    assert result.rejections.table().equals(expected.rejections.table())
    assert (result.formats, result.ties) == (expected.formats, expected.ties)


def one(tmp_path: Path, **changes: object) -> Utterance:
    write_wav(tmp_path / "0.wav", 0)
    utterance = Utterance("a", str(tmp_path / "0.wav"), "s", "d", 0, "p", "말", "말", label="sad")
    return utterance._replace(**changes)


@pytest.mark.parametrize("field", ["session", "dialogue", "speaker"])
@pytest.mark.parametrize("form", ["NFD", "NFKD", "wide", "invisible", "spaces"])
def test_one_name_in_several_forms_is_one_group(tmp_path: Path, field: str, form: str) -> None:
    name = "김철수 A1"
    other = {
        "wide": "김철수　Ａ１",
        "invisible": "\ufeff김철\u200b수 A\u00ad1",
        "spaces": "  김철수\u00a0 A1 ",
    }.get(form) or unicodedata.normalize(form, name)
    assert other != name
    utterances = [
        one(tmp_path, utterance_id=i, **{field: n}) for i, n in (("a", name), ("b", other))
    ]
    rows = build_manifest([("own", utterances)], "soft", CLASSES).rows
    assert rows[field].to_pylist() == [f"own/{name}"] * 2


def test_one_id_in_two_unicode_forms_is_a_duplicate(tmp_path: Path) -> None:
    ids = [unicodedata.normalize(form, "클립1") for form in ("NFC", "NFD")]
    result = build_manifest(
        [("own", [one(tmp_path, utterance_id=i) for i in ids])], "soft", CLASSES
    )
    assert result.rows["utterance_id"].to_pylist() == ["own/클립1"]
    assert dict(result.rejections.categories) == {"duplicate id": 1}


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x93", "\ud800"], ids=ascii)
def test_a_transcript_with_control_characters_is_rejected(tmp_path: Path, character: str) -> None:
    broken = one(tmp_path, utterance_id="b", text=f"a{character}b", text_raw=f"a{character}b")
    result = build_manifest([("own", [one(tmp_path), broken])], "soft", CLASSES)
    assert result.rows["utterance_id"].to_pylist() == ["own/a"]
    [row] = result.rejections.table().to_pylist()
    assert f"control characters (U+{ord(character):04X})" in row["reason"]
    assert result.dropped["own"] == 1


@pytest.mark.parametrize(
    "field", ["utterance_id", "speaker", "session", "dialogue", "gender", "style"]
)
@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x93", "\ud800"], ids=ascii)
def test_a_name_with_control_characters_is_rejected(
    tmp_path: Path, field: str, character: str
) -> None:
    broken = one(tmp_path, utterance_id="b")._replace(**{field: f"A{character}"})
    result = build_manifest([("own", [one(tmp_path), broken])], "soft", CLASSES)
    assert result.rows["utterance_id"].to_pylist() == ["own/a"]
    [row] = result.rejections.table().to_pylist()
    assert f"has control characters (U+{ord(character):04X})" in row["reason"]
    assert row["source"].isprintable()
    assert dict(result.rejections.categories) == {"name": 1}


@pytest.mark.parametrize("field", ["utterance_id", "speaker", "session", "dialogue"])
def test_a_name_of_which_nothing_is_seen_is_rejected(tmp_path: Path, field: str) -> None:
    broken = one(tmp_path, utterance_id="b")._replace(**{field: "\u200b\ufe0f"})
    result = build_manifest([("own", [one(tmp_path), broken])], "soft", CLASSES)
    assert result.rows["utterance_id"].to_pylist() == ["own/a"]
    [reason] = result.rejections.kinds
    assert reason.endswith("has only characters that show nothing")


def test_separators_and_invisible_characters_do_not_reach_the_text(tmp_path: Path) -> None:
    raw = "one\x0btwo\u2028thr\u00adee\ufeff"
    rows = build_manifest([("own", [one(tmp_path, text=raw, text_raw=raw)])], "soft", CLASSES).rows
    assert rows["text"].to_pylist() == ["one two three"]
    assert not set(rows["text_raw"][0].as_py()) & set("\x0b\u2028")
