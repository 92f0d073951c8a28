"""Hashed character n-grams: a text encoder of a few lines and no weights, for light students.

A word is the set of its character n-grams, as in fastText (Bojanowski et al. 2017), and each n-gram
is added into a few of the state's values with a sign, all chosen by a hash (feature hashing,
Weinberger et al. 2009; a sparse random projection, Achlioptas 2003). Words that share a stem share
most of their state, in every script, without a vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from multistill.config import TextEncoderConfig
from multistill.encoders.base import EncoderInfo
from multistill.encoders.tokenizers import words
from multistill.typing import FloatArray

NAME = "hashed-ngrams"
DIM = 256
LENGTHS = (1, 2, 3)
"""Of the n-grams; the whole word is one more."""
VALUES = 8
"""Values of a state that one n-gram adds to, so that two n-grams rarely share them all."""


def ngrams(word: str) -> list[str]:
    """Character n-grams of a word between `<` and `>`, and the word itself.

    Examples:
        >>> ngrams("not")
        ['n', 'o', 't', '<n', 'no', 'ot', 't>', '<no', 'not', 'ot>', '<not>']
    """
    enclosed = f"<{word}>"
    found = list(word)
    for length in LENGTHS[1:]:
        found += [enclosed[start : start + length] for start in range(len(enclosed) - length + 1)]
    return found if len(enclosed) in LENGTHS else [*found, enclosed]


def word_state(word: str) -> FloatArray:
    """State [DIM] float32 of a word, of length 1 where no two n-grams share a value."""
    state = np.zeros(DIM, np.float32)
    found = ngrams(word)
    for ngram in found:
        digest = hashlib.blake2b(ngram.encode(), digest_size=2 * VALUES).digest()
        places = np.frombuffer(digest, "<u2")
        np.add.at(state, places % DIM, np.where(places & 0x8000, 1.0, -1.0))
    return state / np.float32(np.sqrt(VALUES * len(found)))


class HashedNgrams:
    """The states of a text are those of its words."""

    def __init__(self, config: TextEncoderConfig) -> None:
        self._limit = config.max_tokens
        self.info = EncoderInfo(NAME, "none", DIM, 0, (), "none", scaling="global")

    def is_cut(self, text: str) -> bool:
        return len(words(text)) > self._limit

    def encode(self, texts: Sequence[str]) -> list[FloatArray]:
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> FloatArray:
        states = [word_state(word) for word in words(text)[: self._limit]]
        return np.stack(states) if states else np.zeros((0, DIM), np.float32)
