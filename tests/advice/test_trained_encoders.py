"""Advice about what of an encoder can be trained: provoked and followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.advice import says, told
from helpers.tiny_encoders import save_speech_model
from torch import nn

from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.encoders import trained_layers
from multistill.encoders.adapters import add_adapters, add_lora
from multistill.encoders.preflight import problems, refuse_mismatched
from multistill.encoders.trainable import load_trainable
from multistill.errors import UsageError

WAV2VEC2, ELECTRA = "untrained-wav2vec2", "untrained-electra"

SETTINGS: list[tuple[dict[str, Any], str, list[dict[str, Any]]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        {"speech": {"train": "full"}},
        "train: `{}` {}; use `none`, or another encoder",
        [{"speech": {"train": "none"}}, {"speech": {"model": WAV2VEC2, "train": "full"}}],
    ),
    (
        {"speech": {"model": WAV2VEC2, "train": "last-1", "additional": ["log-mel"]}},
        "no speech encoder can be trained; use `none`, or remove the others",
        [
            {"speech": {"model": WAV2VEC2, "additional": ["log-mel"]}},
            {"speech": {"model": WAV2VEC2, "train": "last-1"}},
        ],
    ),
    (
        {"speech": {"model": WAV2VEC2, "train": "last-1", "long_clips": "window"}},
        "features.speech.long_clips is `window`; use `cut` or `quarantine`",
        [
            {"speech": {"model": WAV2VEC2, "train": "last-1", "long_clips": "cut"}},
            {"speech": {"model": WAV2VEC2, "train": "last-1", "long_clips": "quarantine"}},
        ],
    ),
    (
        {"text": {"model": ELECTRA, "train": {"kind": "full", "time_mask": 0.1}}},
        "`time_mask` and `feature_mask` are of speech encoders; remove them",
        [{"text": {"model": ELECTRA, "train": "full"}}],
    ),
    (
        {"speech": {"model": WAV2VEC2, "train": {"kind": "lora", "top": 3}}},
        "is more than the {} layers of `{}` that features.{}.layers uses; lower it",
        [{"speech": {"model": WAV2VEC2, "train": {"kind": "lora", "top": 2}}}],
    ),
    (
        {"speech": {"model": WAV2VEC2, "layers": [0], "train": "full"}},
        "hidden state 0 alone has no layer to train; use a higher one of `layers`",
        [{"speech": {"model": WAV2VEC2, "layers": [1], "train": "full"}}],
    ),
    (
        {"speech": {"model": WAV2VEC2, "train": "last-3"}},
        "uses {}; train fewer layers, or use `full`",
        [
            {"speech": {"model": WAV2VEC2, "train": "last-2"}},
            {"speech": {"model": WAV2VEC2, "train": "full"}},
        ],
    ),
    (
        {"speech": {"model": WAV2VEC2, "layers": [0, 2], "train": "last-1"}},
        "which read state {}; use {} to {}, or train more layers",
        [
            {"speech": {"model": WAV2VEC2, "layers": [1, 2], "train": "last-1"}},
            {"speech": {"model": WAV2VEC2, "layers": [0, 2], "train": "last-2"}},
        ],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "right"), SETTINGS)
def test_settings(wrong: dict[str, Any], advice: str, right: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_mismatched(FeaturesConfig.model_validate(wrong))
    says(advice, refused.value)
    for settings in right:
        assert [*problems(FeaturesConfig.model_validate(settings))] == []


def test_layers_that_cannot_run_alone(tmp_path: Path) -> None:
    model = str(save_speech_model(tmp_path, "wav2vec2-conformer"))

    def load(train: Any) -> None:
        config = SpeechEncoderConfig(model=model, train=train)
        refuse_mismatched(FeaturesConfig(speech=config))
        load_trainable("speech", config, None)

    with told("without those below them; remove `layers`, or use `full`", UsageError):
        load({"kind": "adapter", "layers": 2})
    load("adapter")
    load("full")


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FeaturesConfig.model_validate({"speech": {"model": WAV2VEC2, "train": "lora"}})
    with monkeypatch.context() as without:
        without.setattr(trained_layers, "find_spec", lambda name: None)
        with told("`lora` needs the package peft; run `pip install 'multistill[lora]'`"):
            refuse_mismatched(config)
    refuse_mismatched(config)


class Convolutions(nn.Module):
    """A layer without linear modules."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.feed_forward = nn.Conv1d(4, 4, 1)


def test_layers_without_linear_modules() -> None:
    network = nn.ModuleList([Convolutions()])
    with told("{} has no linear modules in its layers; use `adapter` or `full`", UsageError):
        add_lora(network, network, 2, 4.0, "the encoder `x`")
    add_adapters(network, 4, 2, "the encoder `x`")


def test_layers_without_a_place_for_adapters() -> None:
    network = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
    with told("in which there is no known place for adapters; use `lora`", UsageError):
        add_adapters(network, 4, 2, "the encoder `x`")
    add_lora(network, network, 2, 4.0, "the encoder `x`")


def test_the_trained_part_of_other_settings() -> None:
    def encoder(rank: int) -> Any:
        train = {"kind": "lora", "rank": rank}
        return load_trainable("speech", SpeechEncoderConfig(model=WAV2VEC2, train=train), None)

    with told("or was trained with other settings; train it again"):
        encoder(2).load_trained_state(encoder(3).trained_state())
    encoder(2).load_trained_state(encoder(2).trained_state())
