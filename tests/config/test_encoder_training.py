"""Which encoders are trained, as the job file says it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from multistill.config import EncoderTrainingConfig, SpeechEncoderConfig


def config(value: Any) -> EncoderTrainingConfig:
    return SpeechEncoderConfig.model_validate({"train": value}).train


def test_short_form() -> None:
    assert not SpeechEncoderConfig().train.enabled
    assert (config("last-4").kind, config("last-4").layers) == ("last", 4)
    assert config({"kind": "last-12", "layer_decay": 0.9}).layers == 12
    assert config("lora").rank == 8 and config("lora").alpha == 16
    assert config("adapter").bottleneck == 64 and config("adapter").rank is None
    assert config({"kind": "full", "learning_rate": 1e-6}).learning_rate == 1e-6


@pytest.mark.parametrize("value", ["none", "full", "last-3", "lora", "adapter"])
def test_a_dumped_section_is_the_same(value: str) -> None:
    first = config(value)
    assert config(first.model_dump(mode="json")) == first


def test_a_default_that_is_written_changes_nothing() -> None:
    assert config({"kind": "lora", "rank": 8}).identity() == config("lora").identity()
    assert config("full").learning_rate != config("last-2").learning_rate


def test_gradient_checkpointing_changes_no_identity() -> None:
    written = config({"kind": "full", "gradient_checkpointing": True})
    assert written.identity() == config("full").identity()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("last-0", "write last-1"),
        ("last", "write last-1"),
        ({"kind": "last-2", "layers": 3}, "no `layers` beside it"),
        ({"kind": "full", "layers": 3}, "`layers` is a setting of last, lora, adapter"),
        ({"kind": "last-2", "rank": 4}, "`rank` is a setting of lora, and `train` is `last`"),
        ({"kind": "lora", "bottleneck": 4}, "`bottleneck` is a setting of adapter"),
        ({"learning_rate": 1e-4}, "`train` is `none`"),
        ({"time_mask": 0.1}, "`train` is `none`"),
        ("first-2", "'none', 'full', 'last', 'lora' or 'adapter'"),
    ],
)
def test_bad_values(value: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        config(value)
