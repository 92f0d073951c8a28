"""SentencePiece unigram models: read the model file, and split texts like the C++ library.

The file is protobuf (github.com/google/sentencepiece, src/sentencepiece_model.proto). Its table of
character replacements is a double-array trie of UTF-8 bytes (github.com/s-yata/darts-clone) and,
behind it, the replacements, each ended by a zero byte. `Precompiled` of the `tokenizers` library
reads the same table, but looks up whole graphemes and single characters only: decomposed Hangul
stays decomposed. Here the longest match is taken, as the C++ library does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from multistill.encoders import protobuf
from multistill.encoders.protobuf import InvalidMessageError
from multistill.encoders.tokenizers import Enclosed

# Field numbers of sentencepiece_model.proto.
_MODEL_PIECE, _MODEL_NORMALIZER = 1, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_NORMALIZER_TABLE = 2

_NORMAL = 1
_LONGEST_KEY = 100
"""Bytes; in nmt_nfkc, the usual table, 13."""
_SPACE = "\u2581"
"""Stands for a space in pieces."""


def read_model(model: bytes) -> dict[str, Any]:
    """What `SentencePieces` needs of a unigram model, for JSON.

    Returns:
        `pieces`: `[text, log probability]` by token id, None for the unknown token, start and end
        and others that no text becomes; `replacements`: normalised text by sequence of characters.

    Raises:
        InvalidMessageError: the file is damaged.
    """
    pieces: list[tuple[str, float] | None] = []
    replacements: dict[str, str] = {}
    for number, value in protobuf.fields(memoryview(model)):
        if number == _MODEL_PIECE:
            pieces.append(_piece(protobuf.content(value)))
        elif number == _MODEL_NORMALIZER:
            for inner, table in protobuf.fields(protobuf.content(value)):
                if inner == _NORMALIZER_TABLE:
                    replacements = dict(_replacements(protobuf.content(table)))
    return {"pieces": pieces, "replacements": replacements}


def _piece(message: memoryview) -> tuple[str, float] | None:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in protobuf.fields(message):
        if number == _PIECE_TEXT:
            text = protobuf.text(value)
        elif number == _PIECE_SCORE:
            [score] = _unpacked("<f", protobuf.content(value))
        elif number == _PIECE_TYPE and isinstance(value, int):
            kind = value
    return (text, score) if kind == _NORMAL else None


def _replacements(table: memoryview) -> Iterator[tuple[str, str]]:
    [size] = _unpacked("<I", table[:4])
    units = _unpacked(f"<{size // 4}I", table[4 : 4 + size])
    texts = bytes(table[4 + size :])
    if not units:
        raise InvalidMessageError("the table of replacements has no trie")

    # Keys share their ends, so a unit is visited often.
    @cache
    def children(node: int) -> list[tuple[int, int, str | None]]:
        """Byte, node and replacement of what follows, None if no key ends there."""
        found = []
        for byte in range(1, 256):
            at = node ^ byte
            if at < len(units) and units[at] & 0x800000FF == byte:
                below = at ^ _offset(units[at])
                ends = units[at] & 0x100
                found.append((byte, below, replacement(below) if ends else None))
        return found

    def replacement(node: int) -> str:
        start = units[node] & 0x7FFFFFFF if node < len(units) else len(texts)
        end = texts.find(b"\0", start)
        if end < 0:
            raise InvalidMessageError("a replacement lies outside of the table")
        return _decoded(texts[start:end])

    waiting = [(b"", _offset(units[0]))]
    while waiting:
        prefix, node = waiting.pop()
        for byte, below, text in children(node):
            key = prefix + bytes([byte])
            if len(key) > _LONGEST_KEY:
                raise InvalidMessageError("the table of replacements has a cycle")
            waiting.append((key, below))
            if text is not None:
                yield _decoded(key), text


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessageError("the table of replacements holds what is not text") from error


def _unpacked(form: str, content: memoryview) -> tuple[Any, ...]:
    try:
        return struct.unpack(form, content)
    except struct.error as error:
        raise InvalidMessageError(f"numbers: {error}") from error


class SentencePieces(Enclosed):
    """Splits texts into the pieces of a unigram model.

    Spaces are collapsed, a space is put in front, and neighbouring characters that no piece covers
    become one unknown token, as in the C++ library.

    Args:
        pieces, replacements: of `read_model`.
    """

    # As Google's models have them.
    unknown: int | None = 0
    pad, start, end = 0, 1, 2

    def __init__(
        self,
        pieces: Sequence[tuple[str, float] | None],
        replacements: Mapping[str, str],
    ) -> None:
        from tokenizers.models import Unigram

        # A normalised text has no spaces, so that nothing becomes a token that is no piece.
        vocabulary = [(*piece,) if piece else (f" {i}", 0.0) for i, piece in enumerate(pieces)]
        self._model = Unigram(vocabulary, self.unknown, False)
        self._replacements = replacements
        lengths: dict[str, set[int]] = {}
        for key in replacements:
            lengths.setdefault(key[0], set()).add(len(key))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def ids(self, text: str) -> list[int]:
        normalised = self.normalise(text)
        return [token.id for token in self._model.tokenize(normalised)] if normalised else []

    def normalise(self, text: str) -> str:
        """The text that is split into pieces; empty if there is nothing but spaces."""
        replaced, at = [], 0
        while at < len(text):
            for length in self._lengths.get(text[at], ()):
                found = self._replacements.get(text[at : at + length])
                if found is not None:
                    replaced.append(found)
                    at += length
                    break
            else:
                replaced.append(text[at])
                at += 1
        words = [word for word in "".join(replaced).split(" ") if word]
        return "".join(_SPACE + word for word in words).rstrip(_SPACE)
