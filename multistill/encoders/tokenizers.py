"""Tokenizers of text encoders: of transformers, and one without a vocabulary file."""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import Any, Protocol

from multistill.encoders.base import Tokens

HASHED = 8192
"""Token ids of `HashingTokenizer`."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and signs of a text in any script, without regard to case."""
    return _WORDS.findall(unicodedata.normalize("NFC", text).casefold())


class Tokenizer(Protocol):
    """Converts a text to token ids.

    Attributes:
        pad: id of the padding token.
        unknown: id of the token for what the vocabulary lacks; None if it lacks nothing.
    """

    pad: int
    unknown: int | None

    def __call__(self, text: str, limit: int) -> Tokens:
        """Tokens of a text, special tokens included, at most `limit`."""
        ...

    def ids(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        ...


class Enclosed:
    """The part of a tokenizer that puts a text between a start and an end token."""

    start: int
    end: int

    def ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def __call__(self, text: str, limit: int) -> Tokens:
        ids = self.ids(text)
        return Tokens([self.start, *ids[: limit - 2], self.end], len(ids) > limit - 2)


class HashingTokenizer(Enclosed):
    """Hashes each word and each of its characters to a token id, without a vocabulary file.

    Words carry what a small corpus can teach; characters generalise to inflected and unseen
    words. Works for any script; Hangul syllables count as characters.
    """

    pad, start, end, first = 0, 1, 2, 3
    unknown: int | None = None

    def ids(self, text: str) -> list[int]:
        tokens = []
        for word in words(text):
            tokens.append(word)
            if len(word) > 1:
                tokens.extend(f"#{character}" for character in word)
        buckets = HASHED - self.first
        return [self.first + zlib.crc32(token.encode()) % buckets for token in tokens]


class PretrainedTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad: int = tokenizer.pad_token_id or 0
        self.unknown: int | None = tokenizer.unk_token_id
        self.size = len(tokenizer)
        self._tokenizer = tokenizer

    def __call__(self, text: str, limit: int) -> Tokens:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        if len(ids) <= limit:
            return Tokens(ids)
        # Cut by the tokenizer, which keeps the special tokens at the end.
        return Tokens(self._tokenizer(text, truncation=True, max_length=limit)["input_ids"], True)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
