"""Transcripts: encoding detection, tag removal, normalisation."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from helpers.generators.parts import sentence, tagged
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.text import UndecodableError, clean, decode, read_transcript, tidy

hangul = st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣"))
ascii_text = st.characters(min_codepoint=32, max_codepoint=126)
korean = st.text(st.one_of(hangul, ascii_text), max_size=30)


@settings(deadline=None)
@given(korean, st.sampled_from(["utf-8", "utf-8-sig", "cp949"]))
def test_korean_text_is_decoded_from_any_known_encoding(text: str, encoding: str) -> None:
    decoded, detected = decode(text.encode(encoding), korean=True)
    assert decoded == text
    if encoding == "utf-8-sig" or not text.isascii():
        assert detected == encoding


@pytest.mark.parametrize("word", ["카", "큰", "치", "타", "칭"])
def test_short_cp949_words_that_are_valid_utf8_are_read_as_korean(word: str) -> None:
    assert word.encode("cp949").decode("utf-8") != word
    assert decode(word.encode("cp949"), korean=True) == (word, "cp949")


@pytest.mark.parametrize("text", ["für Tüten", "El niño está aquí", "Ça va très bien", "카"])
def test_valid_utf8_is_read_as_utf8_in_other_corpora(text: str) -> None:
    assert decode(text.encode()) == (text, "utf-8")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00\xd8\xff", b"\xef\xbb\xbf\xff", b"\x80\x80\x80"])
def test_undecodable_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode(data)


def test_reading_a_transcript_strips_it_and_returns_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\r\n b/ 어제 눈이 왔어 \r\n".encode("cp949"))
    assert read_transcript(path) == ("b/ 어제 눈이 왔어", "cp949")


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
def test_tidy_text_is_nfc_with_single_spaces_and_the_same_characters(text: str) -> None:
    result = tidy(text)
    assert unicodedata.is_normalized("NFC", result)
    assert result.split(" ") == result.split() or result == ""
    assert "".join(result.split()) == "".join(unicodedata.normalize("NFC", text).split())
