"""Transcripts: encoding detection, tag removal, normalisation."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path

import pytest
from helpers.generators.parts import sentence, tagged
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config.names import is_invisible
from multistill.corpora.text import (
    CorpusText,
    UndecodableError,
    clean,
    control_characters,
    normal_id,
    normal_name,
    tidy,
    without_separators,
)
from multistill.errors import UsageError

hangul = st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣"))
ascii_text = st.characters(min_codepoint=32, max_codepoint=126)
korean = st.text(st.one_of(hangul, ascii_text), max_size=30)


KOREAN = CorpusText("k", None, list, korean=True)


def write(folder: Path, contents: list[bytes]) -> CorpusText:
    """A corpus of one transcript per file."""
    paths = [folder / f"{number:03d}.txt" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return CorpusText("own", None, lambda: paths)


@settings(deadline=None)
@given(korean, st.sampled_from(["utf-8", "utf-8-sig", "cp949"]))
def test_korean_text_is_decoded_from_any_known_encoding(text: str, encoding: str) -> None:
    decoded, detected = KOREAN.decode(text.encode(encoding))
    assert decoded == text
    if encoding == "utf-8-sig" or not text.isascii():
        assert detected == encoding


@pytest.mark.parametrize("word", ["카", "큰", "치", "타", "칭"])
def test_short_cp949_words_that_are_valid_utf8_are_read_as_korean(word: str) -> None:
    assert word.encode("cp949").decode("utf-8") != word
    assert KOREAN.decode(word.encode("cp949")) == (word, "cp949")


@pytest.mark.parametrize("text", ["für Tüten", "El niño está aquí", "Ça va très bien", "카"])
def test_valid_utf8_is_read_as_utf8_in_other_corpora(text: str) -> None:
    assert CorpusText("own", None, list).decode(text.encode()) == (text, "utf-8")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00\xd8\xff", b"\xef\xbb\xbf\xff", b"\x80\x80\x80"])
def test_undecodable_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        KOREAN.decode(data)


def test_reading_a_transcript_strips_it_and_returns_the_encoding(tmp_path: Path) -> None:
    texts = write(tmp_path, ["\r\n b/ 어제 눈이 왔어 \r\n\x1a".encode("cp949")])
    assert texts.read(tmp_path / "000.txt") == ("b/ 어제 눈이 왔어", "cp949")


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides_for_its_file(tmp_path: Path, mark: str) -> None:
    lines = ["안녕", "It’s fine", "plain"]
    texts = write(tmp_path, [line.encode(mark) for line in lines])
    for number, line in enumerate(lines):
        assert texts.read(tmp_path / f"{number:03d}.txt") == (line, mark)


def test_one_encoding_is_decided_for_all_files_that_are_not_utf8(tmp_path: Path) -> None:
    """`카` alone is valid UTF-8, and is read like the files that tell, before and after them."""
    lines = ["카", "어제 눈이 왔어", "plain", "카", "그래서 웃었어"]
    texts = write(tmp_path, [line.encode("cp949") for line in lines])
    texts.decide()
    assert [texts.read(tmp_path / f"{n:03d}.txt")[0] for n in range(len(lines))] == lines
    assert [record.name for record in texts.records()] == ["cp949"]


def test_a_damaged_file_is_refused_alone(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(400)
    texts = write(tmp_path, [noise, "für".encode(), b"plain", "안녕".encode(), b"more"])
    with pytest.raises(UndecodableError):
        texts.read(tmp_path / "000.txt")
    assert texts.read(tmp_path / "001.txt") == ("für", "utf-8")


def test_a_corpus_that_is_no_text_asks_for_its_encoding(tmp_path: Path) -> None:
    noise = random.Random(0)
    texts = write(tmp_path, [noise.randbytes(400) for _ in range(4)])
    with pytest.raises(UsageError, match=r"corpus `own`: its text .*; set `encoding`"):
        texts.read(tmp_path / "000.txt")


def test_the_given_encoding_is_used_for_all_text_without_a_mark(tmp_path: Path) -> None:
    texts = CorpusText("own", "mac-roman", list)
    assert texts.decode("Ärger".encode("mac-roman")) == ("Ärger", "mac-roman")
    assert texts.decode("안녕".encode("utf-8-sig")) == ("안녕", "utf-8-sig")
    assert [record.origin for record in texts.records()] == ["set in the job file"]


# Of each kind that Unicode has; the blank of Braille is one between words.
INVISIBLE = [
    *"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180e\u200b\u200c\u200d\u200e\u202a\u2060\u2064",
    *"\u206a\u3164\ufe00\ufe0e\ufe0f\ufeff\uffa0\ufff9\ufffc\U0001bca0\U0001d173\U0001d17a",
    *"\U000e0001\U000e0041\U000e007f\U000e0100\U000e01ef\U00013430",
]


def test_every_character_that_unicode_says_to_ignore_is_invisible() -> None:
    drawn = {0x0600, 0x0601, 0x0602, 0x0603, 0x0604, 0x0605, 0x06DD, 0x070F, 0x0890, 0x0891}
    drawn |= {0x08E2, 0x110BD, 0x110CD}
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        ignored = (
            (unicodedata.category(chr(code)) == "Cf" and code not in drawn)
            or "VARIATION SELECTOR" in name
            or (name.startswith(("HANGUL", "HALFWIDTH HANGUL")) and name.endswith("FILLER"))
            or name.startswith("TAG ")
        )
        assert is_invisible(chr(code)) or not ignored, hex(code)
    assert not any(map(is_invisible, "aé가あ中ا\u0600\u0301\u0e34 \t"))


@pytest.mark.parametrize("name", INVISIBLE, ids=ascii)
def test_invisible_characters_do_not_make_another_name(name: str) -> None:
    for person in ("kim", "김철수", "Jörg"):
        for other in (f"{name}{person}", f"{person}{name}", f"{person[0]}{name}{person[1:]}"):
            assert normal_name(other) == normal_id(other) == tidy(other) == person


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_transcript_without_the_mark_that_its_encoding_needs_is_refused(encoding: str) -> None:
    texts = CorpusText("own", encoding, list)
    assert texts.decode("안녕".encode(encoding)) == ("안녕", encoding)
    with pytest.raises(UndecodableError, match=f"set `encoding: {encoding}-le`"):
        texts.decode("안녕".encode(f"{encoding}-be"))


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("person", ["김철수1", "Jörg", "José 2"])
def test_a_name_is_the_same_in_every_unicode_form(person: str, form: str) -> None:
    assert normal_name(f" {unicodedata.normalize(form, person)}\u00a0") == person
    assert normal_name("Ｓ１") == "S1"


def test_names_of_files_that_only_nfkc_makes_equal_stay_different() -> None:
    assert normal_id("clip①") != normal_id("clip1")


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "क्\u200dष",
        "क्\u200cष",
        "র\u200d্যাব",
        "അവന്\u200d",
        "👩\u200d👧",
        "👩🏽\u200d🚀",
        "ᠠ\u180bᠳ",
        "ไทย\u200bไทย",
    ],
    ids=ascii,
)
def test_joiners_stay_where_a_script_needs_them(text: str) -> None:
    assert tidy(text) == text


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
@pytest.mark.parametrize("person", ["علی", "رضا", "สมชาย", "ហេង", "👩"], ids=ascii)
def test_no_script_keeps_what_shows_nothing(person: str, character: str) -> None:
    """A joiner behind a letter that is joined to nothing, or a break, is not seen in a name."""
    assert normal_name(f"{character}{person}{character}") == person
    assert normal_name(f"{person}{character} {person}") == f"{person} {person}"
    if character == "\u200c":  # alef is not joined to the next letter in any case
        assert normal_name(f"رضا{character}{person}") == f"رضا{person}"
    if character == "\u200b":
        assert normal_name(f"{person}{character}{person}") == person * 2


def test_a_blank_of_braille_is_a_space() -> None:
    assert normal_name("Kim\u2800Lee\u2800") == tidy("Kim\u2800Lee") == "Kim Lee"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_control_characters_are_found_and_separators_become_spaces(text: str) -> None:
    found = control_characters(text)
    assert {c for c in text if c in "\0\x07\x1b\x7f\x9f"} <= set(found)
    assert not set(found) & set("\n\t\r \x85")
    assert not set(without_separators(text)) & set("\x0b\x0c\x1c\x85")


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_removing_tags_restores_the_sentence(seed: int) -> None:
    rng = random.Random(seed)
    text = sentence(rng)
    assert clean(tagged(rng, text)) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("c/ 그래서 n/ 갔어", "그래서 갔어"),
        ("그래서c/갔어", "그래서 갔어"),
        ("N/ u/ l/ b/", ""),
        ("음/ 그*래+ 그래", "음 그래 그래"),
        ("abc/ 방송을 봤어", "abc 방송을 봤어"),
        ("", ""),
        (unicodedata.normalize("NFD", "하늘  b/ 바다"), "하늘 바다"),
    ],
)
def test_each_tag(raw: str, text: str) -> None:
    assert clean(raw) == text


@settings(deadline=None)
@given(korean)
def test_cleaning_is_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert not set(clean(text)) & set("*+/")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_tidy_text_is_nfc_with_single_spaces_and_the_same_visible_characters(text: str) -> None:
    result = tidy(text)
    assert unicodedata.is_normalized("NFC", result)
    assert result.split(" ") == result.split() or result == ""
    assert tidy(result) == result
    if not any(map(is_invisible, text)):
        assert "".join(result.split()) == "".join(unicodedata.normalize("NFC", text).split())
