"""What a stream keeps: its latest samples, and the mean of its predictions."""

from __future__ import annotations

import numpy as np

from multistill.audio import SAMPLE_RATE
from multistill.inference.predictor import Prediction
from multistill.typing import FloatArray


class RecentSamples:
    """The latest samples of a stream, by their position in it.

    Attributes:
        end: samples of the stream so far.
    """

    def __init__(self) -> None:
        self.end = 0
        self._first = 0
        self._kept = np.empty(4 * SAMPLE_RATE, np.float32)

    def append(self, samples: FloatArray, needed_from: int) -> None:
        """Add samples; those before `needed_from` may be forgotten."""
        if self.end - self._first + len(samples) > len(self._kept):
            kept = self.get(needed_from, self.end)
            # Twice the room: what is kept is moved once in a while, not with every frame.
            room = max(4 * SAMPLE_RATE, 2 * (len(kept) + len(samples)))
            self._kept = np.empty(room, np.float32)
            self._kept[: len(kept)] = kept
            self._first = needed_from
        start = self.end - self._first
        self._kept[start : start + len(samples)] = samples
        self.end += len(samples)

    def get(self, start: int, end: int) -> FloatArray:
        return self._kept[start - self._first : end - self._first]


class SmoothedState:
    """Exponential mean of predictions over the time of a stream."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._at: float | None = None
        self._values: dict[str, float] = {}

    def add(self, prediction: Prediction, at: float) -> dict[str, float]:
        """The mean with a prediction at a time, which counts as much as the time since the last."""
        new = {**prediction.distribution, **prediction.dimensions}
        kept = 0.0 if self._at is None else 0.5 ** ((at - self._at) / self._half_life)
        self._values = {
            name: kept * self._values.get(name, 0.0) + (1 - kept) * value
            for name, value in new.items()
        }
        self._at = at
        return self._values
