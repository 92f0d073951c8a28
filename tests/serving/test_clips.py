"""A batch of requests with different options: each gets its own answer, in order."""

from __future__ import annotations

import io

import pytest
import soundfile
from helpers.predictor_case import speech_like

from multistill import Predictor
from multistill.serving.clips import Clip, answer
from multistill.serving.refusals import Refusal


def wav(seconds: float, seed: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, speech_like(seconds, seed=seed), 16_000, format="WAV")
    return stream.getvalue()


def test_each_clip_of_a_batch_gets_what_it_gets_alone(predictor: Predictor) -> None:
    clips = [
        Clip(wav(1.0, 0)),
        Clip(b"no sound"),
        Clip(wav(0.7, 1), "good day", only=("sad", "fear")),
        Clip(wav(9.0, 2)),
        Clip(speech_like(1.3, seed=3)),
        Clip(wav(0.5, 4), only=("joy",)),
        Clip(text="좋은 하루", unsure_below=0.999),
        Clip(wav(1.1, 5), only=("sad", "fear")),
    ]
    together = answer(predictor, clips, max_seconds=5)
    for clip, found in zip(clips, together, strict=True):
        [alone] = answer(predictor, [clip], max_seconds=5)
        if isinstance(alone, Refusal):
            assert found == alone
            continue
        assert isinstance(found, dict)
        assert found["distribution"] == pytest.approx(alone["distribution"], abs=1e-5)
        assert (found["label"], found["missing"]) == (alone["label"], alone["missing"])
    assert [isinstance(each, Refusal) for each in together] == [n in (1, 3, 5) for n in range(8)]
    direct = predictor.predict(clips[0].audio)
    assert answer(predictor, clips[:1], 5)[0]["distribution"] == direct.distribution
