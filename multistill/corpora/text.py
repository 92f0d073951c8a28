"""Transcripts: encoding detection, removal of KEMDy's tags, normalisation."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

# c/ no pause, n/ noise, N/ mostly noise, u/ unintelligible, l/ hum, b/ breath; * partly
# heard, + stutter, / interjection. No letter precedes a letter tag, so `etc/` keeps its c.
_LETTER_TAG = re.compile(r"(?<![A-Za-z])[cnNulb]/")
_SIGN_TAG = re.compile(r"[*+/]")

ENCODINGS = ("utf-8-sig", "utf-8", "cp949")


class UndecodableError(ValueError):
    """The bytes are not text in any of `ENCODINGS`."""


def decode(data: bytes, *, korean: bool = False) -> tuple[str, str]:
    """Decode with the first of `ENCODINGS` that fits; return the text and the encoding's name.

    Args:
        korean: whether the text is Korean. A few short Korean words in CP949 are also valid
            UTF-8 (`카` is C4 AB, which UTF-8 reads as `ī`). Hangul never takes two bytes in
            UTF-8, so if UTF-8 gives only two-byte letters and CP949 gives Hangul, CP949 is
            right. For other languages this rule would garble words such as `für`.

    Raises:
        UndecodableError: if no encoding fits.
    """
    if data.startswith(codecs.BOM_UTF8):
        try:
            return data.decode("utf-8-sig"), "utf-8-sig"
        except UnicodeDecodeError as error:
            raise UndecodableError("has a UTF-8 byte order mark but is not UTF-8") from error
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
        raise UndecodableError(f"not text in any of {', '.join(ENCODINGS)}") from error
    if text is not None and not any("가" <= char <= "힣" for char in as_korean):
        return text, "utf-8"
    return as_korean, "cp949"


def read_transcript(path: Path | str, *, korean: bool = False) -> tuple[str, str]:
    """`(text_raw, encoding)` of a transcript file, without surrounding white space; see `decode`.

    Raises:
        UndecodableError: if the file is not text in any known encoding.
        OSError: if the file cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123, once per clip
        text, encoding = decode(stream.read(), korean=korean)
    return text.strip(), encoding


def tidy(text: str) -> str:
    """NFC with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def clean(text_raw: str) -> str:
    """Remove KEMDy's tags from a transcript and `tidy` it; the result may be empty."""
    return tidy(_SIGN_TAG.sub("", _LETTER_TAG.sub(" ", text_raw)))


def normal_text(text: str) -> str:
    """Key for comparing transcripts: spacing, case and Unicode form do not matter."""
    return tidy(text).casefold()
