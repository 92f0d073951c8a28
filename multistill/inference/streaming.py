"""Emotion in a stream of samples: interim and final predictions, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from multistill.inference.voice_activity import (
    FRAME,
    Ended,
    Segmenter,
    SileroVoiceActivity,
    Started,
    VoiceActivity,
    samples_of,
)
from multistill.typing import FloatArray

Json: TypeAlias = dict[str, Any]


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
        prediction = asdict(self.prediction)
        kept = ("label", "distribution", "dimensions", "milliseconds")
        return {
            "event": "interim",
            "start": self.start,
            "end": self.end,
            **{name: prediction[name] for name in kept},
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
        skipped: interim predictions of the segment that were left out since audio waited.
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


Event: TypeAlias = SpeechStart | Interim | Final


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
    ) -> Prediction: ...


class StreamingPredictor:
    """Predictions of one stream of samples; several streams share a `Predictor`.

    One thread at a time may use an object. Events depend on the samples alone, not on how they
    are cut into pushes, except for interim predictions that are skipped.

    Args:
        settings: default: those of `StreamSettings`.
        rate: of the samples in Hz; other rates than 16 kHz are resampled.
        only, unsure_below: as of `Predictor.predict`.
        voice_activity: default: silero-vad.

    Attributes:
        notes: sentences about all predictions of the stream, e.g. that there is no transcript.
        skipped: interim predictions that were left out so far.

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
        self._heard = _Samples()
        self._smoothed = _Smoothed(settings.half_life)
        self._next_interim = 0
        self._skipped_before = 0

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
                else:
                    yield self._final(change, self._segmenter.position)
            start, interval = self._segmenter.start, self._settings.interval
            if start is None or interval is None:
                continue
            if self._segmenter.position >= self._next_interim:
                self._next_interim += samples_of(interval)
                if waiting > self._settings.max_waiting:
                    self.skipped += 1
                else:
                    yield self._interim(start, self._segmenter.position)

    def _interim(self, start: int, end: int) -> Interim:
        start = max(start, end - samples_of(self._settings.window))
        prediction = self._predict(start, end)
        smoothed = self._smoothed.add(prediction, _seconds(end))
        return Interim(_seconds(start), _seconds(end), prediction, smoothed)

    def _final(self, ended: Ended, at: int) -> Final:
        prediction = self._predict(ended.start, ended.end)
        return Final(
            start=_seconds(ended.start),
            end=_seconds(ended.end),
            at=_seconds(at),
            prediction=prediction,
            smoothed=self._smoothed.add(prediction, _seconds(at)),
            cut=ended.cut,
            skipped=self.skipped - self._skipped_before,
        )

    def _predict(self, start: int, end: int) -> Prediction:
        return self._predictor.predict_samples(self._heard.get(start, end), **self._options)


class _Samples:
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


class _Smoothed:
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


def _seconds(samples: int) -> float:
    return samples / SAMPLE_RATE
