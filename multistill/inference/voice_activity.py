"""Who speaks when: probabilities of speech by silero-vad, and the segments that they make.

The network is the ONNX file of the package silero-vad (Silero Team 2024, MIT licence), which is
read without importing that package.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from multistill.audio import SAMPLE_RATE
from multistill.errors import MissingPackageError
from multistill.inference.stream_settings import SegmentSettings
from multistill.typing import FloatArray

FRAME = 512
"""Samples at 16 kHz of one probability: 32 ms."""
_CONTEXT = 64
_RELEASE = 0.15
_FILE = Path("data", "silero_vad.onnx")


class VoiceActivity(Protocol):
    """Probabilities of speech in one stream, frame by frame."""

    def __call__(self, frame: FloatArray) -> float:
        """The probability that somebody speaks in the next `FRAME` samples [512] at 16 kHz."""
        ...


class SileroVoiceActivity:
    """silero-vad on one stream, on one thread; all streams of a process share the network.

    Raises:
        MissingPackageError: the packages of the extra `stream` are not installed.
    """

    def __init__(self) -> None:
        self._session = _session()
        self._rate = np.array(SAMPLE_RATE, np.int64)
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + FRAME), np.float32)

    def __call__(self, frame: FloatArray) -> float:
        # The network also reads the end of the frame before.
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = frame
        inputs = {"input": self._input, "state": self._state, "sr": self._rate}
        probability, self._state = self._session.run(None, inputs)
        return float(probability[0, 0])


def require_silero() -> Path:
    """The file of the network.

    Raises:
        MissingPackageError: the packages of the extra `stream` are not installed.
    """
    package = find_spec("silero_vad")
    folders = (package.submodule_search_locations if package else None) or []
    found = [Path(folder, _FILE) for folder in folders if Path(folder, _FILE).is_file()]
    if not found or find_spec("onnxruntime") is None:
        raise MissingPackageError(
            "streams need the packages silero-vad and onnxruntime; run "
            "`pip install 'multistill[stream]'`"
        )
    return found[0]


@cache
def _session() -> Any:
    path = require_silero()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Started(NamedTuple):
    """A segment is long enough to be one: it began at the sample `start` of the stream."""

    start: int


class Paused(NamedTuple):
    """Nobody speaks for a while: unless speech resumes, the segment is `start` up to `end`."""

    start: int
    end: int


class Ended(NamedTuple):
    """A segment is the samples from `start` up to `end`.

    `cut`: it is as long as segments can be, and somebody still speaks.
    """

    start: int
    end: int
    cut: bool


class Segmenter:
    """Segments of one stream from its probabilities of speech.

    Positions are samples at 16 kHz from the beginning of the stream. Segments do not overlap.

    Attributes:
        position: samples that were judged so far.
    """

    def __init__(self, settings: SegmentSettings) -> None:
        self.position = 0
        self._threshold = settings.threshold
        self._release = settings.threshold - _RELEASE
        self._min_speech = samples_of(settings.min_speech)
        self._min_silence = samples_of(settings.min_silence)
        self._padding = samples_of(settings.padding)
        # At the earliest when the segment has its padding: its end is then that of `Ended`.
        self._min_pause = (
            None
            if settings.min_pause is None
            else max(samples_of(settings.min_pause), self._padding)
        )
        self._max_segment = samples_of(settings.max_segment)
        self._last_end = 0
        self._start: int | None = None  # of a segment, or of what may become one
        self._onset = 0
        self._announced = False
        self._quiet_from: int | None = None
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether the segment in progress had its `Paused`, and nobody has spoken since."""
        return self._paused

    @property
    def start(self) -> int | None:
        """First sample of the segment in progress; None: nobody speaks."""
        return self._start if self._announced else None

    @property
    def needed_from(self) -> int:
        """First sample that a later segment can still have."""
        earliest = self._start
        if earliest is None:
            earliest = max(self._last_end, self.position - self._padding)
        return max(0, earliest)

    def step(self, probability: float) -> Iterator[Started | Paused | Ended]:
        """Judge the next `FRAME` samples."""
        frame, self.position = self.position, self.position + FRAME
        if probability >= self._threshold:
            self._quiet_from, self._paused = None, False
            if self._start is None:
                self._onset = frame
                self._start = max(self._last_end, frame - self._padding)
        elif probability < self._release and self._quiet_from is None:
            self._quiet_from = frame
        if self._start is None:
            return
        quiet = self._quiet_from is not None
        silence = self.position - (self._quiet_from or 0)
        silent = quiet and silence >= self._min_silence
        if not self._announced:
            if silent:
                self._start = None
            elif not quiet and self.position - self._onset >= self._min_speech:
                self._announced = True
                yield Started(self._start)
        elif silent or self.position - self._start >= self._max_segment:
            yield self._end(self.position)
        elif (
            quiet
            and not self._paused
            and self._min_pause is not None
            and silence >= self._min_pause
        ):
            self._paused = True
            yield Paused(self._start, self._end_of_speech(self.position))

    def finish(self, samples: int) -> Iterator[Ended]:
        """End the segment in progress where the stream ends, after `samples` samples."""
        if self._announced:
            yield self._end(samples)._replace(cut=False)

    def _end(self, limit: int) -> Ended:
        """End the segment after the padding of its speech, at the latest at `limit`."""
        assert self._start is not None
        end = self._end_of_speech(limit)
        cut = self._quiet_from is None
        ended = Ended(self._start, end, cut)
        self._last_end, self._announced, self._paused = end, False, False
        self._start = self._onset = end
        if not cut:
            self._start = None
        return ended

    def _end_of_speech(self, limit: int) -> int:
        assert self._start is not None
        end = min(limit, self._start + self._max_segment)
        return end if self._quiet_from is None else min(end, self._quiet_from + self._padding)


def samples_of(seconds: float) -> int:
    """Samples at 16 kHz."""
    return round(seconds * SAMPLE_RATE)
