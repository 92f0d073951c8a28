"""Decode audio files to the input of speech encoders: mono, 16 kHz, zero mean, unit variance."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

from multistill.encoders.base import SAMPLE_RATE
from multistill.typing import FloatArray

LongClips = Literal["cut", "window", "quarantine"]


class UnusableClipError(Exception):
    """A clip cannot be encoded; the message becomes its reason in the quarantine table."""


@dataclass(frozen=True)
class Wave:
    """A decoded clip.

    Attributes:
        samples: [n] float32 at 16 kHz, normalised.
        cut: the clip was longer than `max_seconds` and was cut there.
    """

    samples: FloatArray
    cut: bool = False


def decode(path: str, *, max_seconds: float, long_clips: LongClips) -> Wave:
    """Decode and normalise one clip.

    Args:
        max_seconds: longer clips are handled by `long_clips`.
        long_clips: `cut` them, read them completely (`window`: the caller splits them), or
            `quarantine`: raise.

    Raises:
        UnusableClipError: the file is missing, corrupt, empty, too long or not finite.
    """
    try:
        with soundfile.SoundFile(path) as source:
            rate = source.samplerate
            allowed = round(max_seconds * rate)
            too_long = source.frames > allowed
            if too_long and long_clips == "quarantine":
                seconds = source.frames / rate
                raise UnusableClipError(
                    f"too long: {seconds:.1f} s, the limit is {max_seconds:g} s"
                )
            cut = too_long and long_clips == "cut"
            data = source.read(allowed if cut else -1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UnusableClipError(f"cannot be decoded: {_first_line(error)}") from error
    if not len(data):
        raise UnusableClipError("empty: no samples")
    if not np.isfinite(data).all():
        raise UnusableClipError("holds samples that are not finite")
    mono = data.mean(axis=1) if data.shape[1] > 1 else data[:, 0]
    if rate != SAMPLE_RATE:
        mono = resample(mono, rate)
    return Wave(normalize(mono), cut)


def resample(wave: npt.NDArray[np.float32], rate: int) -> FloatArray:
    """Resample to 16 kHz with a windowed sinc; the length is ceil(n * 16000 / rate)."""
    # Imported here, since decode tasks on 16 kHz corpora then need no torch.
    import torch
    from torchaudio.functional import resample as sinc

    common = gcd(rate, SAMPLE_RATE)
    return sinc(
        torch.from_numpy(np.ascontiguousarray(wave)), rate // common, SAMPLE_RATE // common
    ).numpy()


def normalize(wave: FloatArray) -> FloatArray:
    """Scale a clip to zero mean and unit variance, as wav2vec2's `do_normalize`."""
    centred = wave - wave.mean(dtype=np.float64).astype(np.float32)
    variance = float(np.square(centred, dtype=np.float64).mean())
    return np.ascontiguousarray(centred / np.float32(np.sqrt(variance + 1e-7)))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
