"""Levels of a recording: of its channels, and of the mono 16 kHz signal that is encoded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multistill.typing import FloatArray

SILENT_DBFS = -60.0
"""A signal whose deviation from its mean stays below it is silent."""
CANCELLED_DB = 20.0
"""The channels cancel each other if the mix is so much softer than the loudest of them."""
FRAME = 400
"""Samples in a frame of 25 ms at 16 kHz."""
_FULL_SCALE = 32767 / 32768
_FLOOR = 1e-5  # -100 dB


class ChannelLevels:
    """Levels of the channels of a recording, collected block by block."""

    def __init__(self, channels: int) -> None:
        self._frames = 0
        self._clipped = 0
        self._sum = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """Count a block [n, channels]."""
        self._frames += len(block)
        self._clipped += int((np.abs(block) >= _FULL_SCALE).sum())
        self._sum += block.sum(axis=0, dtype=np.float64)
        self._squares += np.square(block, dtype=np.float64).sum(axis=0)

    @property
    def clipped_share(self) -> float:
        """Share of samples at full scale."""
        return self._clipped / max(1, self._frames * len(self._sum))

    @property
    def dbfs(self) -> list[float]:
        """Level of each channel around its mean, in dB relative to full scale."""
        mean = self._sum / max(1, self._frames)
        variance = np.maximum(self._squares / max(1, self._frames) - mean**2, 0)
        return [decibels(float(level)) for level in np.sqrt(variance)]


class Levels(NamedTuple):
    """Levels of one recording, in dB relative to full scale, and shares from 0 to 1.

    Those of the mono signal at 16 kHz are around its mean, since a constant is not encoded.

    Attributes:
        silent_share: of the frames of 25 ms, below -60 dBFS.
        clipped_share: of the samples of all channels, at full scale.
        silent: the signal that is encoded holds no sound.
        cancelled: the channels cancel each other when they are mixed.
        dead_channel: one channel is silent, another is not.
    """

    peak_dbfs: float
    level_dbfs: float
    silent_share: float
    clipped_share: float
    silent: bool
    cancelled: bool
    dead_channel: bool


def measure(samples: FloatArray, channels: ChannelLevels) -> Levels:
    """Measure a recording.

    Args:
        samples: [n] mono at 16 kHz, not normalised, n > 0.
        channels: of the same recording.
    """
    centred = samples - samples.mean(dtype=np.float64).astype(np.float32)
    width = min(FRAME, len(centred))
    frames = centred[: len(centred) // width * width].reshape(-1, width)
    loudness = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    level = decibels(float(np.sqrt(np.square(centred, dtype=np.float64).mean())))
    each = channels.dbfs
    loudest = max(each)
    audible = loudest > SILENT_DBFS
    peak = decibels(float(np.abs(centred).max()))
    return Levels(
        peak,
        level,
        float(np.mean(loudness < 1e-3)),
        channels.clipped_share,
        silent=peak < SILENT_DBFS,
        cancelled=len(each) > 1 and audible and level < loudest - CANCELLED_DB,
        dead_channel=audible and min(each) < SILENT_DBFS,
    )


def decibels(value: float) -> float:
    """In dB relative to 1, -100 or more."""
    return float(20 * np.log10(max(value, _FLOOR)))
