"""Hashed n-grams: what two words share, and that every text has its states."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import TextEncoderConfig
from multistill.encoders.ngrams import DIM, NAME, HashedNgrams, ngrams, word_state, words
from multistill.encoders.registry import load_text

ENCODER = HashedNgrams(TextEncoderConfig(model=NAME))


def similarity(one: str, other: str) -> float:
    a, b = word_state(one), word_state(other)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize(
    ("one", "inflected", "other"),
    [
        ("기쁘다", "기쁘지만", "슬퍼서"),
        ("happy", "happier", "furious"),
        ("грусть", "грустно", "весело"),
    ],
)
def test_inflected_words_are_nearer_than_other_words(one: str, inflected: str, other: str) -> None:
    assert similarity(one, inflected) > similarity(one, other) + 0.2


@given(st.text(max_size=40))
def test_every_text_has_one_finite_state_a_word(text: str) -> None:
    [states] = ENCODER.encode([text])
    assert states.shape == (len(words(text)), DIM)
    assert states.dtype == np.float32
    assert np.isfinite(states).all()


@given(st.text(min_size=1, max_size=12))
def test_states_have_about_the_same_length(word: str) -> None:
    # A value that two n-grams share adds or takes away: near 1 in the mean, never 0.
    assert 0.3 < np.linalg.norm(word_state(word)) < 2.5


def test_a_word_counts_its_own_n_grams() -> None:
    assert ngrams("a") == ["a", "<a", "a>", "<a>"]
    assert ngrams("ab") == ["a", "b", "<a", "ab", "b>", "<ab", "ab>", "<ab>"]


def test_case_and_spelling_of_the_same_characters_do_not_matter() -> None:
    [composed, decomposed, upper] = ENCODER.encode(["café", "cafe\u0301", "CAFÉ"])
    assert (composed == decomposed).all()
    assert (composed == upper).all()


def test_states_are_the_same_in_every_process() -> None:
    code = (
        "from multistill.encoders.ngrams import word_state; print(word_state('말').tobytes().hex())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert bytes.fromhex(output.stdout.strip()) == word_state("말").tobytes()


def test_states_are_those_that_models_were_trained_on() -> None:
    """Another hash, split or case would mean nothing to a model that is stored."""
    [states] = ENCODER.encode(["정말 Happy!"])
    rounded = (states * 1e6).round().astype("<i4").tobytes()
    assert hashlib.sha256(rounded).hexdigest()[:16] == "c85f6ea9e8a62b40"


def test_long_texts_are_cut_at_max_tokens() -> None:
    encoder = load_text(TextEncoderConfig(model=NAME, max_tokens=8), None, torch.device("cpu"))
    text = " ".join(f"word{number}" for number in range(9))
    [states] = encoder.encode([text])
    assert len(states) == 8
    assert encoder.is_cut(text)
    assert not encoder.is_cut(text.rsplit(maxsplit=1)[0])
    assert (encoder.info.trained, encoder.info.params) == (None, 0)
