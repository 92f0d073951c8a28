"""Segments of speech: what every one of them is like, and silero-vad as its package runs it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from helpers.stream_case import RATE, speech_with_pauses
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multistill.inference.stream_settings import SegmentSettings
from multistill.inference.voice_activity import (
    FRAME,
    Ended,
    Paused,
    Segmenter,
    SileroVoiceActivity,
    Started,
    require_silero,
)

SETTINGS = st.builds(
    SegmentSettings,
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    min_speech=st.sampled_from([0.0, 0.1, 0.25]),
    min_silence=st.sampled_from([0.0, 0.1, 0.3]),
    padding=st.sampled_from([0.0, 0.05, 0.4]),
    max_segment=st.sampled_from([1.0, 2.0]),
    min_pause=st.sampled_from([None, 0.0, 0.1, 0.2]),
)
# Runs of a probability: independent frames would hardly ever make a segment.
RUNS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.6, 1.0]), st.integers(1, 40)))


@settings(max_examples=100, deadline=None)
@given(SETTINGS, RUNS)
@example(SegmentSettings(0.3, 0.0, 0.0, 0.4, 1.0), [(0.0, 2), (0.4, 91), (0.0, 1)])
def test_segments(wanted: SegmentSettings, runs: list[tuple[float, int]]) -> None:
    """In order, apart, bounded, and of samples that were still there."""
    probabilities = [value for value, count in runs for _ in range(count)]
    segmenter = Segmenter(wanted)
    started: list[int] = []
    ended: list[Ended] = []
    pause: Paused | None = None
    needed = [0]
    for number, probability in enumerate(probabilities):
        for change in segmenter.step(probability):
            if isinstance(change, Started):
                assert change.start >= (ended[-1].end if ended else 0)
                assert change.start >= needed[-1]
                started.append(change.start)
            elif isinstance(change, Paused):
                assert pause is None and wanted.min_pause is not None and segmenter.paused
                assert change.start == started[-1] and len(ended) < len(started)
                pause = change
            else:
                ended.append(change)
                assert pause is None or pause == change[:2], "the pause told how it would end"
                pause = None
                assert change.start == started[-1] and len(ended) == len(started)
                assert change.end <= segmenter.position == (number + 1) * FRAME
        if probability >= wanted.threshold:
            pause = None
        assert segmenter.paused == (pause is not None)
        assert segmenter.needed_from >= needed[-1], "what is forgotten does not come back"
        needed.append(segmenter.needed_from)
        kept = wanted.max_segment + wanted.padding + wanted.min_speech + wanted.min_silence
        assert segmenter.position - segmenter.needed_from <= kept * RATE + 2 * FRAME
        assert (segmenter.start is not None) == (len(started) > len(ended))
    for last in segmenter.finish(len(probabilities) * FRAME):
        assert pause is None or pause == last[:2]
        ended.append(last)
    assert len(ended) == len(started)
    loud = np.repeat(np.array(probabilities) >= wanted.threshold - 0.15, FRAME)
    for each in ended:
        assert 0 < each.end - each.start <= wanted.max_segment * RATE
        assert loud[each.start : each.end].any()
        assert not each.cut or each.end - each.start == wanted.max_segment * RATE


def test_every_long_speech_is_in_a_segment() -> None:
    """Speech from 1 to 2.5 s, a breath of 0.2 s, speech up to 3.2 s; then a click."""
    wanted = SegmentSettings()
    segmenter = Segmenter(wanted)
    changes = []
    for number in range(200):
        time = number * FRAME / RATE
        speaks = 1 <= time < 2.5 or 2.7 <= time < 3.2 or 5 <= time < 5.1
        changes += list(segmenter.step(float(speaks)))
    [started, breath, pause, ended] = changes
    assert isinstance(breath, Paused) and isinstance(pause, Paused)
    assert isinstance(ended, Ended) and started.start == breath.start == ended.start
    assert pause == ended[:2] and abs(breath.end / RATE - 2.6) < 0.04
    assert abs(ended.start / RATE - 0.9) < 0.04 and abs(ended.end / RATE - 3.3) < 0.04


def test_longer_speech_is_cut_without_a_gap() -> None:
    segmenter = Segmenter(SegmentSettings(max_segment=1.5))
    changes = [change for _ in range(150) for change in segmenter.step(1.0)]
    ended = [change for change in changes if isinstance(change, Ended)]
    assert [(each.start, each.end, each.cut) for each in ended] == [
        (n * 24_000, (n + 1) * 24_000, True) for n in range(3)
    ]
    [last] = segmenter.finish(150 * FRAME)
    assert last == Ended(72_000, 150 * FRAME, False)


def test_probabilities_are_those_of_the_package() -> None:
    from silero_vad.utils_vad import OnnxWrapper

    samples = speech_with_pauses()
    package, ours = OnnxWrapper(str(require_silero())), SileroVoiceActivity()
    frames = [samples[n : n + FRAME] for n in range(0, len(samples) - FRAME + 1, FRAME)]
    wanted = [package(torch.from_numpy(frame), RATE).item() for frame in frames]
    assert [ours(frame) for frame in frames] == wanted
    assert min(wanted) < 0.1 and max(wanted) > 0.9


def test_two_streams_do_not_hear_each_other() -> None:
    samples = speech_with_pauses()
    frames = [samples[n : n + FRAME] for n in range(0, len(samples) - FRAME + 1, FRAME)]
    alone, first, second = SileroVoiceActivity(), SileroVoiceActivity(), SileroVoiceActivity()
    for frame, other in zip(frames, reversed(frames), strict=True):
        second(other)
        assert first(frame) == alone(frame)


def test_silero_needs_no_torchaudio() -> None:
    """Its package imports torch.hub's relatives; the file alone is taken from it."""
    code = (
        "import sys; from multistill.inference.voice_activity import SileroVoiceActivity as S;"
        "S(); assert not {'silero_vad', 'torchaudio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
