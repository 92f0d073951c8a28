"""A head that reads one of several speech encoders whose states stand side by side."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from multistill.errors import JobFileError, UsageError
from multistill.features.statistics import Moments, StateStatistics
from multistill.models.build import build
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec, StatePart
from multistill.pipeline import jobfile

PARTS = (StatePart("large", 12, (3, 6)), StatePart("log-mel", 5))
AUDIO, TEXT = 17, 4


def spec_of(**keys: Any) -> ModelSpec:
    return resolve("small-audio-student", {"speech_parts": PARTS, **keys})


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({}, slice(0, 17)),
        ({"speech_encoder": "large"}, slice(0, 12)),
        ({"speech_encoder": "log-mel"}, slice(12, 17)),
        ({"speech_encoder": "log-mel", "front": "convolutional"}, slice(12, 17)),
        ({"speech_encoder": "large", "speech_layer": 6}, slice(6, 12)),
    ],
)
def test_a_head_reads_its_part_and_no_other(keys: dict[str, Any], read: slice) -> None:
    spec = ModelSpec.from_dict(json.loads(json.dumps(spec_of(**keys).to_dict())))
    assert spec.state_slice("speech", AUDIO) == read
    model = build(spec, AUDIO, TEXT).eval()
    states = torch.randn(2, 6, AUDIO)
    changed = torch.randn_like(states)
    changed[..., read] = states[..., read]
    with torch.inference_mode():
        logits = model(audio=states).logits
        assert torch.equal(model(audio=changed).logits, logits)
        if read != slice(0, AUDIO):
            assert not torch.equal(model(audio=changed.flip(-1)).logits, logits)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not among the speech encoders .*: large, log-mel"):
        spec_of(speech_encoder="other")
    with pytest.raises(UsageError, match="set speech_encoder too"):
        build(spec_of(speech_layer=3), AUDIO, TEXT)
    with pytest.raises(UsageError, match="have 17 values, and the features 18"):
        build(spec_of(), AUDIO + 1, TEXT)
    with pytest.raises(UsageError, match="one speech encoder"):
        build(spec_of(speech_parts=(), speech_encoder="large"), AUDIO, TEXT)


def test_parts_are_standardised_each_as_its_encoder_asks() -> None:
    generator = np.random.default_rng(0)
    mean, deviation = generator.normal(size=AUDIO), generator.uniform(1, 2, AUDIO)
    audio, none = Moments(mean, deviation, 9), Moments(np.zeros(0), np.zeros(0), 0)
    statistics = StateStatistics(
        audio,
        none,
        none,
        none,
        scaling={"speech": "dimension", "text": "dimension"},
        encoders={},
        clips=1,
        speech_parts=[(12, "dimension"), (5, "global")],
    )
    centre, scale = statistics.scaled("audio", "encoder")
    for part, kind in ((slice(0, 12), "dimension"), (slice(12, 17), "global")):
        wanted = audio.part(part).scaled(kind)
        np.testing.assert_array_equal((centre[part], scale[part]), wanted)
    assert len(set(statistics.scaled("audio", "global")[0])) == 2, "one mean per encoder"


def problems(job: str) -> str:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\n{job}", "t.yaml")
    return "; ".join(text for _, text in caught.value.problems)


def test_job_files_that_choose_what_is_not_stored_are_refused() -> None:
    model = "students: [{name: a, model: {preset: small-audio-student, %s}}]\n"
    two = "features: {speech: {model: smart-turn, additional: [{model: log-mel}]}}\n"
    assert "features.speech is one encoder" in problems(model % "speech_encoder: log-mel")
    assert "use one of smart-turn, log-mel" in problems(two + model % "speech_encoder: logmel")
    assert "has several encoders" in problems(two + model % "speech_layer: 1")
    layers = two.replace("smart-turn,", "smart-turn, layers: [1, 2], combine: concat,")
    chosen = "speech_encoder: %s, speech_layer: 2"
    assert "the store holds one state" in problems(layers + model % (chosen % "log-mel"))
    searched = (
        "search: {space: {model.speech_encoder: {choices: [smart-turn, other]}, "
        "model.speech_layer: {choices: [2, 3]}}}"
    )
    found = problems(layers + searched)
    assert "no encoder called `other`" in found and "layer 3 cannot be read" in found
    valid = layers + model % (chosen % "smart-turn")
    jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\n{valid}", "t.yaml")
