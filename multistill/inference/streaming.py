"""Emotion in a stream of samples: interim and final predictions, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import RATES, Resampler, refuse_not_finite, to_float32
from multistill.config import FeaturesConfig
from multistill.errors import UsageError
from multistill.inference.predictor import Prediction
from multistill.inference.stream_settings import SegmentSettings, StreamSettings, check_range
from multistill.inference.stream_state import RecentSamples, SmoothedState
from multistill.inference.voice_activity import (
    FRAME,
    Ended,
    Paused,
    Segmenter,
    SileroVoiceActivity,
    Started,
    VoiceActivity,
    samples_of,
)
from multistill.typing import FloatArray

Json: TypeAlias = dict[str, Any]

ROOM_SECONDS = 30.0
"""For which a final prediction waits for a predictor without room."""


class NoRoomError(Exception):
    """A predictor that others use too has no room for a prediction now."""


@dataclass(frozen=True)
class SpeechStart:
    """Somebody began to speak.

    Attributes:
        start: of the segment, in seconds of the stream.
        at: when it was known, in seconds of the stream.
    """

    start: float
    at: float

    def to_json(self) -> Json:
        return {"event": "start", "start": self.start, "at": self.at}


@dataclass(frozen=True)
class Interim:
    """A prediction while somebody speaks.

    Attributes:
        start, end: of the samples that were predicted, in seconds of the stream.
        prediction: of them alone.
        smoothed: class or dimension -> exponential mean of the predictions of the stream so far.
    """

    start: float
    end: float
    prediction: Prediction
    smoothed: Mapping[str, float]

    def to_json(self) -> Json:
        return {
            "event": "interim",
            "start": self.start,
            "end": self.end,
            **_in_short(self.prediction),
            "smoothed": dict(self.smoothed),
        }


@dataclass(frozen=True)
class Provisional:
    """The prediction that is final unless speech resumes within `min_silence`.

    Attributes:
        start, end: of the segment as it is then, in seconds of the stream.
        at: when the pause was known, in seconds of the stream.
        prediction: that of the `Final` with the same start and end, if there is one.
        smoothed: as of `Interim`.
    """

    start: float
    end: float
    at: float
    prediction: Prediction
    smoothed: Mapping[str, float]

    def to_json(self) -> Json:
        return {
            "event": "provisional",
            "start": self.start,
            "end": self.end,
            "at": self.at,
            **_in_short(self.prediction),
            "smoothed": dict(self.smoothed),
        }


@dataclass(frozen=True)
class Final:
    """The prediction of a segment.

    Attributes:
        start, end: of the segment, in seconds of the stream.
        at: when its end was known, in seconds of the stream.
        prediction: `Predictor.predict_samples` of its samples.
        smoothed: as of `Interim`.
        cut: the segment was as long as one can be, and somebody still spoke.
        skipped: interim and provisional predictions of the segment that were left out since
            audio waited or the predictor had no room.
    """

    start: float
    end: float
    at: float
    prediction: Prediction
    smoothed: Mapping[str, float]
    cut: bool
    skipped: int

    def to_json(self) -> Json:
        return {
            "event": "final",
            "start": self.start,
            "end": self.end,
            "at": self.at,
            **asdict(self.prediction),
            "smoothed": dict(self.smoothed),
            "cut": self.cut,
            "skipped": self.skipped,
        }


Event: TypeAlias = SpeechStart | Interim | Provisional | Final


class SamplesPredictor(Protocol):
    """What a `StreamingPredictor` asks of a `Predictor`."""

    name: str
    minimum_samples: int
    features: FeaturesConfig

    @property
    def modality(self) -> str: ...

    def check(self, only: Sequence[str] | None, unsure_below: float | None) -> None: ...

    def predict_samples(
        self,
        samples: FloatArray,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        """Predict samples [n].

        Raises:
            NoRoomError: there is no room for it now.
        """
        ...


class StreamingPredictor:
    """Predictions of one stream of samples; several streams share a `Predictor`.

    One thread at a time may use an object. Events depend on the samples alone, not on how they
    are cut into pushes, except for predictions that are skipped.

    Args:
        settings: default: those of `StreamSettings`.
        rate: of the samples in Hz; other rates than 16 kHz are resampled.
        only, unsure_below: as of `Predictor.predict`.
        voice_activity: default: silero-vad.

    Attributes:
        notes: sentences about all predictions of the stream, e.g. that there is no transcript.
        skipped: interim and provisional predictions that were left out so far.

    Raises:
        UsageError: the model reads no audio, the rate is implausible, `window` or `min_speech`
            is shorter than what the model can predict, or the packages of the extra `stream` are
            not installed.
    """

    def __init__(
        self,
        predictor: SamplesPredictor,
        settings: StreamSettings | None = None,
        *,
        rate: int = SAMPLE_RATE,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
        voice_activity: VoiceActivity | None = None,
    ) -> None:
        settings = settings or StreamSettings()
        _check(predictor, settings, rate)
        predictor.check(only, unsure_below)
        self.skipped = 0
        self.notes: tuple[str, ...] = ()
        if predictor.modality == "multimodal":
            self.notes = ("the model reads text too, and a stream has none",)
        self._predictor = predictor
        self._settings = settings
        self._options: dict[str, Any] = {"only": only, "unsure_below": unsure_below}
        self._voice_activity = voice_activity or SileroVoiceActivity()
        self._segmenter = Segmenter(_segments(predictor, settings.segments))
        self._resample = Resampler(rate)
        self._heard = RecentSamples()
        self._smoothed = SmoothedState(settings.half_life)
        self._next_interim = 0
        self._skipped_before = 0
        self._provisional: Provisional | None = None

    @property
    def position(self) -> float:
        """Seconds of the stream that were judged."""
        return self._segmenter.position / SAMPLE_RATE

    def push(self, samples: npt.NDArray[np.generic], *, waiting: float = 0.0) -> list[Event]:
        """Add the next samples of the stream and return what happened in them.

        Args:
            samples: [n] at `rate`; integers have the full scale of their type.
            waiting: seconds of audio that arrived and wait behind these samples.

        Raises:
            UnusableClipError: samples are not finite, or no numbers [n].
            NoRoomError: the predictor had no room for a final prediction within `ROOM_SECONDS`.
        """
        return list(self._advance(self._resample(_checked(samples)), waiting))

    def finish(self) -> list[Event]:
        """End the stream and return what is left, the final prediction of the last segment."""
        events = list(self._advance(self._resample.rest(), 0.0))
        for ended in self._segmenter.finish(self._heard.end):
            events.append(self._final(ended, self._heard.end))
        return events

    def _advance(self, samples: FloatArray, waiting: float) -> Iterator[Event]:
        self._heard.append(samples, self._segmenter.needed_from)
        while self._heard.end - self._segmenter.position >= FRAME:
            position = self._segmenter.position
            probability = self._voice_activity(self._heard.get(position, position + FRAME))
            for change in self._segmenter.step(probability):
                if isinstance(change, Started):
                    self._next_interim = self._segmenter.position
                    self._skipped_before = self.skipped
                    yield SpeechStart(_seconds(change.start), self.position)
                elif isinstance(change, Paused):
                    yield from self._unless_late(waiting, partial(self._paused, change))
                else:
                    yield self._final(change, self._segmenter.position)
            start, interval = self._segmenter.start, self._settings.interval
            if start is None or interval is None:
                continue
            if self._segmenter.position >= self._next_interim:
                self._next_interim += samples_of(interval)
                if not self._segmenter.paused:
                    yield from self._unless_late(waiting, partial(self._interim, start))

    def _unless_late(self, waiting: float, predict: Callable[[], Event]) -> Iterator[Event]:
        """The event of a prediction that may be left out."""
        if waiting <= self._settings.max_waiting:
            try:
                yield predict()
                return
            except NoRoomError:
                pass
        self.skipped += 1

    def _interim(self, start: int) -> Interim:
        end = self._segmenter.position
        start = max(start, end - samples_of(self._settings.window))
        prediction = self._predict(start, end)
        smoothed = self._smoothed.add(prediction, _seconds(end))
        return Interim(_seconds(start), _seconds(end), prediction, smoothed)

    def _paused(self, paused: Paused) -> Provisional:
        prediction = self._predict(paused.start, paused.end)
        self._provisional = Provisional(
            start=_seconds(paused.start),
            end=_seconds(paused.end),
            at=self.position,
            prediction=prediction,
            smoothed=self._smoothed.add(prediction, self.position),
        )
        return self._provisional

    def _final(self, ended: Ended, at: int) -> Final:
        prediction = self._predict_whole(ended)
        return Final(
            start=_seconds(ended.start),
            end=_seconds(ended.end),
            at=_seconds(at),
            prediction=prediction,
            smoothed=self._smoothed.add(prediction, _seconds(at)),
            cut=ended.cut,
            skipped=self.skipped - self._skipped_before,
        )

    def _predict_whole(self, ended: Ended) -> Prediction:
        """The prediction of a segment, waiting for room; one that was made is not made again."""
        made, self._provisional = self._provisional, None
        if made and (made.start, made.end) == (_seconds(ended.start), _seconds(ended.end)):
            return made.prediction
        deadline = time.monotonic() + ROOM_SECONDS
        pause = 0.05
        while True:
            try:
                return self._predict(ended.start, ended.end)
            except NoRoomError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _predict(self, start: int, end: int) -> Prediction:
        return self._predictor.predict_samples(self._heard.get(start, end), **self._options)


def _check(predictor: SamplesPredictor, settings: StreamSettings, rate: int) -> None:
    if predictor.modality == "text":
        raise UsageError(
            f"the model {predictor.name} reads text alone, and a stream is sound; use a model that "
            "reads audio"
        )
    check_range("rate", rate, *RATES)
    shortest = predictor.minimum_samples / SAMPLE_RATE
    given = {"window": settings.window, "min_speech": settings.segments.min_speech}
    for name, value in given.items():
        if value < shortest:
            raise UsageError(
                f"{name}: {value:g} s is too short for the model; use {shortest:g} or more"
            )


def _segments(predictor: SamplesPredictor, settings: SegmentSettings) -> SegmentSettings:
    speech = predictor.features.speech
    if speech.long_clips == "window":
        return settings
    return replace(settings, max_segment=min(settings.max_segment, speech.max_seconds))


def _checked(samples: npt.NDArray[np.generic]) -> FloatArray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind not in "fiu":
        raise UnusableClipError(
            "not audio", f"an array of {samples.dtype} with the shape {list(samples.shape)}"
        )
    converted = to_float32(samples)
    refuse_not_finite(converted)
    return converted


def _in_short(prediction: Prediction) -> Json:
    """What a prediction says of the sound, without what is the same for the whole stream."""
    fields = asdict(prediction)
    return {name: fields[name] for name in ("label", "distribution", "dimensions", "milliseconds")}


def _seconds(samples: int) -> float:
    return samples / SAMPLE_RATE
