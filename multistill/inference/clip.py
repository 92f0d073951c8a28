"""One clip: how it is given, and its states for a model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.reading import MAX_SECONDS
from multistill.config import SpeechEncoderConfig
from multistill.corpora.text import code_points, control_characters, tidy
from multistill.features.attempts import is_of_the_item
from multistill.features.decode import Wave, decode, decode_array
from multistill.features.in_memory import StatesInMemory, encode_clip
from multistill.inference.encoders import ModelEncoders
from multistill.typing import AnyArray, FloatArray

Audio: TypeAlias = str | Path | bytes | tuple[FloatArray, int]
"""A file's path, a file's content, or samples [n] or [n, channels] with their rate in Hz."""


@dataclass(frozen=True)
class Input:
    """One clip; what a model does not read is ignored.

    Attributes:
        audio: None: there is no recording.
        text: transcript; None or blank: there is none.
    """

    audio: Audio | None = None
    text: str | None = None


@dataclass(frozen=True)
class ReadClip:
    """What is known of a clip before the head runs, as in `Prediction`."""

    milliseconds: dict[str, float]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_clip(name: str, clip: Input, encoders: ModelEncoders, states: StatesInMemory) -> ReadClip:
    """Decode and encode a clip, and add its states under a name.

    Raises:
        UnusableClipError: it cannot be read or encoded, or lacks all that the model reads.
    """
    text = _checked_text(clip.text) if encoders.text is not None else ""
    given = {"audio": clip.audio is not None, "text": bool(text)}
    reads = ["audio"] * (encoders.speech is not None) + ["text"] * (encoders.text is not None)
    missing = tuple(modality for modality in reads if not given[modality])
    if len(missing) == len(reads):
        raise UnusableClipError("nothing to read", f"the model reads {' and '.join(reads)}")
    milliseconds: dict[str, float] = {}
    notes: list[str] = []
    audio: AnyArray = np.zeros((0, states.audio_dim), np.float32)
    tokens: AnyArray = np.zeros((0, states.text_dim), np.float32)
    config = encoders.config
    with _of_the_clip():
        if encoders.speech is not None and clip.audio is not None:
            with _timed(milliseconds, "decode"):
                wave = _decode(clip.audio, config.speech)
            notes += _notes_on(wave, config.speech)
            with _timed(milliseconds, "speech"):
                audio = encode_clip(
                    wave.samples, encoders.speech, config.speech, config.batch_seconds
                )
        if encoders.text is not None and text:
            with _timed(milliseconds, "text"):
                [tokens] = encoders.text.encode([text])
            if encoders.text.is_cut(text):
                notes.append(f"the transcript was cut after {len(tokens)} tokens")
    states.add(name, audio, tokens)
    return ReadClip(milliseconds, missing, tuple(notes))


def _decode(audio: Audio, config: SpeechEncoderConfig) -> Wave:
    limits: Any = {"max_seconds": config.max_seconds, "long_clips": config.long_clips}
    if isinstance(audio, tuple):
        return decode_array(*audio, **limits)
    return decode(audio if isinstance(audio, bytes) else os.fspath(audio), **limits)


def _checked_text(text: str | None) -> str:
    """A transcript as a manifest has it.

    Raises:
        UnusableClipError: it holds characters that no text has.
    """
    if text is not None and (control := control_characters(text)):
        raise UnusableClipError("not text", f"the transcript has {code_points(control)}")
    return tidy(text or "")


def _notes_on(wave: Wave, config: SpeechEncoderConfig) -> Iterator[str]:
    if wave.cut:
        yield f"only the first {min(config.max_seconds, MAX_SECONDS):g} s were read"
    if wave.silent:
        yield "the recording is silent"


@contextmanager
def _timed(milliseconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    milliseconds[stage] = 1000 * (time.perf_counter() - start)


@contextmanager
def _of_the_clip() -> Iterator[None]:
    """Turn what decoding or encoding one clip raises into its reason.

    Raises:
        UnusableClipError: another clip might not raise it.
    """
    try:
        yield
    except Exception as error:
        if not is_of_the_item(error):
            raise
        raise UnusableClipError(
            "cannot be encoded", f"{type(error).__name__}: {describe(error)}"
        ) from error
