"""What decides a feature store, and what of the training of encoders does not."""

from __future__ import annotations

from typing import Any

import pytest

from multistill.config import FeaturesConfig
from multistill.features.identity import features_identity, store_settings


def job(train: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate(
        {
            "speech": {"model": "untrained-wav2vec2", "train": train},
            "text": {"model": "untrained-electra", "train": train},
        }
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("full", "lora"),
        ("full", {"kind": "adapter", "bottleneck": 8}),
        ("last-1", {"kind": "lora", "layers": 1, "rank": 2}),
        ({"kind": "full", "learning_rate": 1e-3}, {"kind": "full", "layer_decay": 0.5}),
    ],
)
def test_a_store_is_shared_by_all_trainings_that_read_the_same_rows(one: Any, other: Any) -> None:
    assert features_identity(job(one)) == features_identity(job(other))


def test_a_store_of_other_rows_is_another_store() -> None:
    found = [features_identity(job(train)) for train in ("none", "full", "last-1", "last-2")]
    assert all(one != other for n, one in enumerate(found) for other in found[:n])


@pytest.mark.parametrize("train", ["none", "full", "last-2", "lora", {"kind": "lora", "layers": 2}])
def test_the_settings_of_a_store_are_settings_of_a_job(train: Any) -> None:
    settings = store_settings(job(train))
    again = FeaturesConfig.model_validate(settings)
    assert store_settings(again) == settings
    assert again.speech.train.enabled == (train != "none")
    assert ("train" in settings["speech"]) == (train != "none")
