"""Speech with pauses, and voice activity that a test decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from helpers.paths import ROOT
from multistill.audio.reading import read_sound
from multistill.inference.voice_activity import FRAME

RATE = 16_000
RECORDING = ROOT / "multistill" / "corpora" / "data" / "demo-session03.ogg"


def speech_with_pauses(
    seconds: tuple[float, ...] = (1.6, 0.9, 2.3), pause: float = 0.8
) -> npt.NDArray[np.float32]:
    """Pieces of a recording of this repository, each after a pause and the last before one."""
    samples = read_sound(str(RECORDING), max_seconds=sum(seconds) + 1).samples
    silence = np.zeros(round(pause * RATE), np.float32)
    parts, start = [silence], 0
    for length in seconds:
        stop = start + round(length * RATE)
        parts += [samples[start:stop], silence]
        start = stop
    return np.concatenate(parts)


class Scripted:
    """Voice activity that a function of the time in seconds decides."""

    def __init__(self, speaks: Callable[[float], bool]) -> None:
        self._speaks = speaks
        self._frames = 0

    def __call__(self, frame: npt.NDArray[np.float32]) -> float:
        assert len(frame) == FRAME
        self._frames += 1
        return float(self._speaks((self._frames - 1) * FRAME / RATE))
