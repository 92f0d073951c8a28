"""Transcripts: finding the encoding, and KEMDy's tags taken out of the text."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

# c/ no pause, n/ noise, N/ mostly noise, u/ unintelligible, l/ hum, b/ breath; * partly
# heard, + stutter, / interjection. A letter tag stands alone, so `etc/` keeps its c.
_LETTER_TAG = re.compile(r"(?<![A-Za-z])[cnNulb]/")
_SIGN_TAG = re.compile(r"[*+/]")

ENCODINGS = ("utf-8-sig", "utf-8", "cp949")


class UndecodableError(ValueError):
    """Bytes that are text in none of `ENCODINGS`."""


def decode(data: bytes, *, korean: bool = False) -> tuple[str, str]:
    """Text and the name of the encoding that fitted, tried in the order of `ENCODINGS`.

    Args:
        korean: for corpora that are. A few short Korean words in CP949 are also valid UTF-8
            (`카` is C4 AB, which UTF-8 reads as `ī`). Hangul is never two bytes long in UTF-8,
            so where UTF-8 sees only two-byte letters and CP949 sees Hangul, CP949 is right;
            anywhere else this would garble `für`.
    Raises:
        UndecodableError: where none fits.
    """
    if data.startswith(codecs.BOM_UTF8):
        try:
            return data.decode("utf-8-sig"), "utf-8-sig"
        except UnicodeDecodeError as error:
            raise UndecodableError("starts as UTF-8 but does not go on so") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and (not korean or text.isascii() or any(char > "\u07ff" for char in text)):
        return text, "utf-8"
    try:
        as_korean = data.decode("cp949")
    except UnicodeDecodeError as error:
        if text is not None:
            return text, "utf-8"
        raise UndecodableError(f"text in none of {', '.join(ENCODINGS)}") from error
    if text is not None and not any("가" <= char <= "힣" for char in as_korean):
        return text, "utf-8"
    return as_korean, "cp949"


def read_transcript(path: Path | str, *, korean: bool = False) -> tuple[str, str]:
    """`(text_raw, encoding)` of a transcript file, without surrounding white space; see `decode`.

    Raises:
        UndecodableError: where the file is no text in any known encoding.
        OSError: where it cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123, once a clip
        text, encoding = decode(stream.read(), korean=korean)
    return text.strip(), encoding


def tidy(text: str) -> str:
    """NFC with single spaces: text of a corpus that has no tags."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def clean(text_raw: str) -> str:
    """A KEMDy transcript without its tags, in NFC with single spaces; may be empty."""
    return tidy(_SIGN_TAG.sub("", _LETTER_TAG.sub(" ", text_raw)))


def normal_text(text: str) -> str:
    """Transcripts that differ only in spacing, case or Unicode form are the same words."""
    return tidy(text).casefold()
