"""Decode a recording to the input of speech encoders: mono, 16 kHz, zero mean, unit variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from multistill.audio.errors import UnusableClipError
from multistill.audio.levels import SILENT_DBFS
from multistill.audio.reading import MAX_SECONDS, Sound, convert, read_sound
from multistill.typing import FloatArray

LongClips = Literal["cut", "window", "quarantine"]

VARIANCE_FLOOR = 1e-7
"""Added to the variance of a clip, as wav2vec2's feature extractor does."""
_SILENT = 10 ** (SILENT_DBFS / 20)


@dataclass(frozen=True)
class Wave:
    """A decoded clip.

    Attributes:
        samples: [n] float32 at 16 kHz, normalised.
        cut: the clip was longer than `max_seconds` and was cut there.
        silent: no sample is further than -60 dB of full scale from the mean, so that the states
            say nothing about the speaker. Channels that cancel each other give such a clip.
    """

    samples: FloatArray
    cut: bool = False
    silent: bool = False


def decode(
    path: str | bytes,
    *,
    max_seconds: float,
    long_clips: LongClips,
    digest: str | None = None,
    change: Callable[[FloatArray], FloatArray] | None = None,
    first_channel: bool = False,
) -> Wave:
    """Decode and normalise one clip.

    Args:
        path: of a file; bytes are the content of one.
        max_seconds: longer clips are handled by `long_clips`.
        long_clips: `cut` them, read them completely (`window`: the caller splits them), or
            `quarantine`: raise.
        digest: of the content that the file must have; None: any.
        change: applied to the samples [n] before they are normalised.
        first_channel: read this channel only, in place of the mean of all.

    Raises:
        UnusableClipError: the file is missing, corrupt, empty, truncated, too long or not
            finite, or it is not the file with this digest.
    """
    limit = _limit(max_seconds, long_clips)
    sound = read_sound(path, max_seconds=limit, digest=digest, first_channel=first_channel)
    if sound.cut and long_clips != "cut":
        raise _too_long(sound, limit)
    return _wave(sound.samples if change is None else change(sound.samples), sound.cut)


def decode_array(
    samples: npt.NDArray[np.generic], rate: int, *, max_seconds: float, long_clips: LongClips
) -> Wave:
    """Like `decode`, of samples in memory [n] or [n, channels] with `rate` samples a second.

    Raises:
        UnusableClipError: there are none, they are too long or not finite, or rate or shape are
            implausible.
    """
    limit = _limit(max_seconds, long_clips)
    sound = convert(samples, rate, limit)
    if sound.cut and long_clips != "cut":
        raise _too_long(sound, limit)
    return _wave(sound.samples, sound.cut)


def _limit(max_seconds: float, long_clips: LongClips) -> float:
    return MAX_SECONDS if long_clips == "window" else min(max_seconds, MAX_SECONDS)


def _too_long(sound: Sound, limit: float) -> UnusableClipError:
    seconds = sound.header.frames / sound.header.rate
    return UnusableClipError("too long", f"{seconds:.1f} s, the limit is {limit:g} s")


def _wave(samples: FloatArray, cut: bool) -> Wave:
    centred = _centre(samples)
    return Wave(_scale(centred), cut, bool(np.abs(centred).max() < _SILENT))


def normalize(wave: FloatArray) -> FloatArray:
    """Scale a clip to zero mean and unit variance, as wav2vec2's `do_normalize`."""
    return _scale(_centre(wave))


def _centre(wave: FloatArray) -> FloatArray:
    return wave - wave.mean(dtype=np.float64).astype(np.float32)


def _scale(centred: FloatArray) -> FloatArray:
    variance = float(np.square(centred, dtype=np.float64).mean())
    return np.ascontiguousarray(centred / np.float32(np.sqrt(variance + VARIANCE_FLOOR)))


__all__ = ["UnusableClipError", "Wave", "decode", "decode_array", "normalize"]
