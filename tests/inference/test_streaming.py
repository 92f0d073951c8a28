"""Streams: final predictions are those of the same clips offline, in whatever pieces they come."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.predictor_case import save_predictor
from helpers.stream_case import RATE, Scripted, speech_with_pauses

from multistill import Predictor
from multistill.audio.errors import UnusableClipError
from multistill.errors import UsageError
from multistill.inference import streaming
from multistill.inference.stream_settings import SegmentSettings, StreamSettings
from multistill.inference.streaming import (
    Event,
    Final,
    Interim,
    NoRoomError,
    Provisional,
    SpeechStart,
    StreamingPredictor,
)

SAMPLES = speech_with_pauses()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    model = save_predictor(tmp_path_factory.mktemp("model") / "m", "small-audio-student")
    return Predictor.load(model, "cpu")


def run(
    predictor: Predictor,
    samples: Any = SAMPLES,
    settings: StreamSettings | None = None,
    piece: int = 1600,
    waiting: float = 0.0,
    **options: Any,
) -> list[Event]:
    stream = StreamingPredictor(predictor, settings, **options)
    events: list[Event] = []
    for start in range(0, len(samples), piece):
        events += stream.push(samples[start : start + piece], waiting=waiting)
    return events + stream.finish()


def of(events: list[Event], kind: type) -> Any:
    return [event for event in events if isinstance(event, kind)]


def untimed(events: list[Event]) -> list[Any]:
    """The events without how long the predictions took."""
    return [
        replace(event, prediction=replace(event.prediction, milliseconds={}))
        if isinstance(event, Interim | Provisional | Final)
        else event
        for event in events
    ]


def cut(start: float, end: float) -> Any:
    return SAMPLES[round(start * RATE) : round(end * RATE)]


@pytest.mark.parametrize("window", [0.5, 3.0])
def test_predictions_are_those_of_the_same_samples_offline(
    predictor: Predictor, window: float
) -> None:
    events = run(predictor, settings=StreamSettings(window=window))
    finals, interims = of(events, Final), of(events, Interim)
    provisional = of(events, Provisional)
    assert len(finals) == len(of(events, SpeechStart)) == 3 and len(interims) >= 12
    assert len({tuple(each.prediction.distribution.values()) for each in finals}) == 3
    for each in finals + interims + provisional:
        offline = predictor.predict_samples(cut(each.start, each.end))
        assert each.prediction.distribution == offline.distribution
        assert each.prediction.label == offline.label
    for each in interims:
        assert each.end - each.start <= window + 1e-9


@pytest.mark.parametrize("piece", [1, 511, 4096, 10**9])
def test_events_do_not_depend_on_the_pieces(predictor: Predictor, piece: int) -> None:
    settings = StreamSettings(interval=None) if piece == 1 else None
    samples = SAMPLES[: 3 * RATE] if piece == 1 else SAMPLES
    wanted = run(predictor, samples, settings)
    assert of(wanted, Final)
    assert untimed(run(predictor, samples, settings, piece)) == untimed(wanted)


def test_streams_in_threads_share_a_model(predictor: Predictor) -> None:
    sounds = [np.roll(SAMPLES, number * RATE) for number in range(6)]
    wanted = [untimed(run(predictor, sound)) for sound in sounds]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda sound: untimed(run(predictor, sound)), sounds))
    assert found == wanted and len({len(events) for events in wanted}) > 1


def test_integers_and_other_rates_are_the_same_speech(predictor: Predictor) -> None:
    whole = (SAMPLES * 32_767).astype(np.int16)
    wanted = run(predictor)
    for events in (
        run(predictor, whole),
        run(predictor, np.repeat(SAMPLES, 3), rate=48_000, piece=4800),
    ):
        assert [type(event) for event in events if isinstance(event, SpeechStart | Final)] == [
            type(event) for event in wanted if isinstance(event, SpeechStart | Final)
        ]
        for found, final in zip(of(events, Final), of(wanted, Final), strict=True):
            assert found.start == pytest.approx(final.start, abs=0.07)
            assert found.end == pytest.approx(final.end, abs=0.07)


def test_interim_predictions_come_at_the_interval(predictor: Predictor) -> None:
    samples = np.tile(SAMPLES, 2)
    events = run(
        predictor,
        samples,
        StreamSettings(interval=0.25),
        voice_activity=Scripted(lambda time: time < 8),
    )
    ends = np.array([each.end for each in of(events, Interim)])
    assert abs(np.diff(ends).mean() - 0.25) < 0.01 and np.diff(ends).max() < 0.25 + 0.033
    assert not of(run(predictor, settings=StreamSettings(interval=None)), Interim)


def speaks_with_a_breath(time: float) -> bool:
    """Speech from 0.5 to 3 s with a breath of 0.2 s in it, and from 4 to 5 s."""
    return 0.5 <= time < 1.5 or 1.7 <= time < 3 or 4 <= time < 5


class Counted:
    """A predictor that counts its calls, and has no room while `busy` says so."""

    def __init__(self, predictor: Predictor, busy: Callable[[], bool] = lambda: False) -> None:
        self.__dict__.update(vars(predictor))
        self.modality, self.check = predictor.modality, predictor.check
        self.minimum_samples = predictor.minimum_samples
        self.calls = 0
        self._predict, self._busy = predictor.predict_samples, busy

    def predict_samples(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self._busy():
            raise NoRoomError
        return self._predict(*args, **options)


def test_a_label_comes_before_the_silence_that_ends_a_segment(predictor: Predictor) -> None:
    counted: Any = Counted(predictor)
    events = run(counted, voice_activity=Scripted(speaks_with_a_breath))
    breath, first, second = of(events, Provisional)
    finals = of(events, Final)
    assert counted.calls == len(of(events, Interim)) + 3, "finals are those of the pause"
    for early, final in zip((first, second), finals, strict=True):
        assert early.prediction == final.prediction
        assert (early.start, early.end) == (final.start, final.end)
        assert early.at - (early.end - 0.1) == pytest.approx(0.128)
        assert final.at - early.at > 0.15
    assert breath.start == finals[0].start and breath.end == pytest.approx(1.6, abs=0.04)
    after = [event.end for event in of(events, Interim) if event.end > breath.at]
    assert 1.7 < after[0] < 1.8, "nothing between a pause and the speech after it"
    without = StreamSettings(SegmentSettings(min_pause=None), interval=None)
    plain = run(predictor, settings=without, voice_activity=Scripted(speaks_with_a_breath))
    assert not of(plain, Provisional)
    assert [each.prediction.distribution for each in of(plain, Final)] == [
        each.prediction.distribution for each in finals
    ]


def test_a_predictor_without_room_costs_all_but_the_final_predictions(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(predictor, voice_activity=Scripted(speaks_with_a_breath))
    early = len(of(wanted, Interim)) + len(of(wanted, Provisional))
    waits: list[float] = []
    monkeypatch.setattr(streaming.time, "sleep", waits.append)

    def busy() -> bool:
        """Until somebody has waited twice for the same prediction."""
        if len(waits) < 2:
            return True
        waits.clear()
        return False

    full: Any = Counted(predictor, busy)
    events = run(full, voice_activity=Scripted(speaks_with_a_breath))
    assert not of(events, Interim) and not of(events, Provisional)
    assert [each.prediction.distribution for each in of(events, Final)] == [
        each.prediction.distribution for each in of(wanted, Final)
    ]
    assert sum(each.skipped for each in of(events, Final)) == early
    monkeypatch.setattr(streaming, "ROOM_SECONDS", 0.2)
    never: Any = Counted(predictor, lambda: True)
    with pytest.raises(NoRoomError):
        run(never, voice_activity=Scripted(speaks_with_a_breath))


def test_the_smoothed_state_halves_what_was_before(predictor: Predictor) -> None:
    """A prediction weighs as much as the time since the one before it."""
    settings = StreamSettings(half_life=0.7)
    state: dict[str, float] = {}
    before = None
    for event in run(predictor, settings=settings):
        if isinstance(event, SpeechStart):
            continue
        at = event.end if isinstance(event, Interim) else event.at
        kept = 0.0 if before is None else 2 ** (-(at - before) / 0.7)
        now = event.prediction.distribution
        state = {name: kept * state.get(name, 0.0) + (1 - kept) * now[name] for name in now}
        assert event.smoothed == pytest.approx(state)
        assert sum(event.smoothed.values()) == pytest.approx(1.0)
        before = at


def test_a_slow_reader_gets_every_final_prediction(predictor: Predictor) -> None:
    wanted, late = run(predictor), run(predictor, waiting=1.0)
    assert not of(late, Interim) and not of(late, Provisional) and of(wanted, Interim)
    assert [each.prediction.distribution for each in of(late, Final)] == [
        each.prediction.distribution for each in of(wanted, Final)
    ]
    early = len(of(wanted, Interim)) + len(of(wanted, Provisional))
    assert sum(each.skipped for each in of(late, Final)) == early
    assert all(each.skipped == 0 for each in of(wanted, Final))


def test_long_speech_has_a_final_prediction_for_each_part(predictor: Predictor) -> None:
    settings = StreamSettings(SegmentSettings(max_segment=1.5))
    finals = of(run(predictor, settings=settings, voice_activity=Scripted(lambda _: True)), Final)
    assert [each.start for each in finals[1:]] == [each.end for each in finals[:-1]]
    assert finals[0].start == 0 and finals[-1].end == len(SAMPLES) / RATE
    assert [each.cut for each in finals] == [True] * (len(finals) - 1) + [False]


def test_segments_are_no_longer_than_what_the_model_reads(tmp_path: Path) -> None:
    features = {"speech": {"model": "log-mel", "max_seconds": 1.2}}
    model = save_predictor(tmp_path / "m", "small-audio-student", features=features)
    finals = of(run(Predictor.load(model, "cpu"), voice_activity=Scripted(lambda _: True)), Final)
    assert max(each.end - each.start for each in finals) == pytest.approx(1.2)
    assert not any("were read" in note for each in finals for note in each.prediction.notes)


def test_a_quarter_of_an_hour_needs_no_more_memory_than_a_minute(predictor: Predictor) -> None:
    settings = StreamSettings(interval=None)
    sound = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    stream = StreamingPredictor(
        predictor, settings, voice_activity=Scripted(lambda time: time % 60 < 20)
    )
    finals = 0
    peaks = []
    tracemalloc.start()
    try:
        for _minute in range(15):
            tracemalloc.reset_peak()
            for _ in range(6):
                finals += len(of(stream.push(sound), Final))
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert finals == 30, "of each minute 15 s, and the rest of 20 s"
    assert max(peaks[2:]) < 1.05 * peaks[1] < 20e6


def test_what_does_not_fit_the_model(tmp_path: Path, predictor: Predictor) -> None:
    both = Predictor.load(save_predictor(tmp_path / "both"), "cpu")
    assert StreamingPredictor(both).notes and not StreamingPredictor(predictor).notes
    text = Predictor.load(save_predictor(tmp_path / "text", "small-text-student"), "cpu")
    with pytest.raises(UsageError, match="reads text alone"):
        StreamingPredictor(text)
    with pytest.raises(UsageError, match="has no class"):
        StreamingPredictor(predictor, only=["joy"])
    for bad in (np.full(1600, np.nan, np.float32), np.zeros((4, 2)), np.array(["a"])):
        with pytest.raises(UnusableClipError):
            StreamingPredictor(predictor).push(bad)


def test_only_possible_classes_and_a_threshold(predictor: Predictor) -> None:
    for each in of(run(predictor, only=["sad", "fear"], unsure_below=1.0), Final):
        assert set(each.prediction.distribution) == {"sad", "fear"} == set(each.smoothed)
        assert each.prediction.label is None


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(5 * RATE, np.float32)])
def test_without_speech_nothing_happens(predictor: Predictor, samples: Any) -> None:
    assert run(predictor, samples) == []
