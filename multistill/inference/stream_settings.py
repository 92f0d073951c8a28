"""Settings of a stream and of the segments in it. No torch, no NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from multistill.errors import UsageError


@dataclass(frozen=True)
class SegmentSettings:
    """How probabilities of speech become segments; times in seconds.

    Attributes:
        threshold: probability from which a frame is speech. Below `threshold` - 0.15 it is
            silence, and between them what the frame before was.
        min_speech: speech shorter than this is no segment.
        min_silence: a segment ends after a silence of this length.
        padding: kept before and after the speech.
        max_segment: a longer segment is cut here.
        min_pause: a segment is predicted provisionally after a silence of this length, and of
            `padding` at least; None, or not less than `min_silence`: it is not.

    Raises:
        UsageError: a value is out of its range.
    """

    threshold: float = 0.5
    min_speech: float = 0.25
    min_silence: float = 0.3
    padding: float = 0.1
    max_segment: float = 15.0
    min_pause: float | None = 0.1

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0.05, 0.95)
        check_range("min_speech", self.min_speech, 0.0, 10.0)
        check_range("min_silence", self.min_silence, 0.0, 10.0)
        if self.min_pause is not None:
            check_range("min_pause", self.min_pause, 0.0, 10.0)
        check_range("padding", self.padding, 0.0, 5.0)
        check_range("max_segment", self.max_segment, 1.0, 600.0)
        if self.min_speech + self.padding >= self.max_segment:
            raise UsageError(
                f"max_segment: {self.max_segment:g} s is not longer than min_speech and padding "
                "together; use a larger value"
            )


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Refuse a setting out of its range.

    Raises:
        UsageError: it is.
    """
    if not (math.isfinite(value) and least <= value <= most):
        raise UsageError(
            f"{name}: {value:g} is not possible; use a value from {least:g} to {most:g}"
        )


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a stream; times in seconds.

    Attributes:
        segments: how speech is found. A segment is never longer than what the model reads of a
            recording (`max_seconds`, unless `long_clips` is `window`).
        interval: time between two interim predictions while somebody speaks; None: there are
            none.
        window: an interim prediction is of the last `window` seconds of its segment.
        half_life: time after which a prediction counts half in the smoothed state.
        max_waiting: interim and provisional predictions are skipped while more audio than this
            waits.

    Raises:
        UsageError: a value is out of its range.
    """

    segments: SegmentSettings = field(default_factory=SegmentSettings)
    interval: float | None = 0.25
    window: float = 3.0
    half_life: float = 2.0
    max_waiting: float = 0.25

    def __post_init__(self) -> None:
        if self.interval is not None:
            check_range("interval", self.interval, 0.05, 60.0)
        check_range("window", self.window, 0.1, 600.0)
        check_range("half_life", self.half_life, 0.01, 3600.0)
        check_range("max_waiting", self.max_waiting, 0.0, 60.0)
