"""What `stream` and `StreamingPredictor` tell the user to do helps."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.advice import told
from helpers.features_case import save_wav2vec2
from helpers.predictor_case import save_predictor

from multistill import Predictor
from multistill.errors import MultistillError, UsageError
from multistill.inference import stream_sources, voice_activity
from multistill.inference.stream_settings import SegmentSettings, StreamSettings
from multistill.inference.stream_sources import PIPE, Source
from multistill.inference.streaming import StreamingPredictor
from multistill.inference.voice_activity import require_silero


def arriving(source: Source) -> int:
    """Samples of a source."""
    return sum(len(piece.samples) for piece in source.pieces(lambda: False, print))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    return str(tmp_path / "a.wav")


def test_what_a_stream_is_read_from(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for audio, microphone in ((None, False), (clip, True)):
        with told("a stream has one source; give either --audio or --microphone", UsageError):
            Source(audio, microphone)
    with told("--rate is of raw samples, and a recording has its own; leave it out", UsageError):
        Source(clip, False, 16_000)
    assert arriving(Source(clip, False)) == 1600
    leader, terminal = os.openpty()
    monkeypatch.setattr(stream_sources, "_STANDARD_INPUT", terminal)
    with told("write raw samples into it with a pipe, or name a recording with --audio"):
        Source(PIPE, False)
    os.close(leader)
    out, into = os.pipe()
    monkeypatch.setattr(stream_sources, "_STANDARD_INPUT", out)
    os.write(into, Path(clip).read_bytes())
    os.close(into)
    with told("it begins as an audio file does; name the file with --audio, or convert it"):
        arriving(Source(PIPE, False))
    out, into = os.pipe()
    monkeypatch.setattr(stream_sources, "_STANDARD_INPUT", out)
    os.write(into, bytes(3200))
    os.close(into)
    assert arriving(Source(PIPE, False)) == 1600


def test_microphones(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(stream_sources, "find_spec", lambda name: None)
        with told("needs the package sounddevice; run `pip install 'multistill[microphone]'`"):
            Source(None, True)
    monkeypatch.setattr(stream_sources, "find_spec", lambda name: True)

    class NoPortAudio:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    with monkeypatch.context() as without:
        without.delitem(sys.modules, "sounddevice", raising=False)
        without.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
        with told("PortAudio cannot be loaded ({}); install it", MultistillError):
            arriving(Source(None, True))

    class InputStream:
        def __init__(self, samplerate: int, finished_callback: Any, **_: Any) -> None:
            if samplerate != 48_000:
                raise ValueError("Invalid sample rate")
            self.start = finished_callback

        def close(self) -> None: ...

    module = SimpleNamespace(InputStream=InputStream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with told("cannot be opened at {} Hz ({}); use another one, or set its rate with --rate"):
        arriving(Source(None, True))
    assert arriving(Source(None, True, 48_000)) == 0


def test_without_silero(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(voice_activity, "find_spec", lambda name: None)
        with told("silero-vad and onnxruntime; run `pip install 'multistill[stream]'`"):
            require_silero()
    assert require_silero().is_file()


def test_settings() -> None:
    with told("{} is not possible; use a value from {} to {}", UsageError):
        StreamSettings(window=0.0)
    StreamSettings(window=0.1)
    with told("is not longer than min_speech and padding together; use a larger value"):
        SegmentSettings(min_speech=2.0, max_segment=1.0)
    SegmentSettings(min_speech=2.0, max_segment=3.0)


def test_models(tmp_path: Path) -> None:
    text = Predictor.load(save_predictor(tmp_path / "text", "small-text-student"), "cpu")
    with told("reads text alone, and a stream is sound; use a model that reads audio"):
        StreamingPredictor(text)
    features = {"speech": {"model": str(save_wav2vec2(tmp_path / "wav2vec2"))}}
    audio = save_predictor(tmp_path / "audio", "small-audio-student", features)
    predictor = Predictor.load(audio, "cpu")
    short = StreamSettings(SegmentSettings(min_speech=0.0))
    with told("{} s is too short for the model; use {} or more", UsageError):
        StreamingPredictor(predictor, short)
    StreamingPredictor(predictor)
