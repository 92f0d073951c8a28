"""What a training gets where the job file leaves epochs, batch size or learning rate out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import TrainConfig, TrainSection
from multistill.models.presets import PRESETS
from multistill.training.defaults import defaults_of, resolve_training

presets = st.sampled_from(sorted(PRESETS))
clips = st.integers(1, 200_000)


@given(presets, clips)
def test_a_training_has_enough_steps_or_as_many_epochs_as_are_allowed(
    preset: str, count: int
) -> None:
    defaults, train = defaults_of(preset), resolve_training(TrainSection(), preset, count)
    assert train is not None
    assert defaults.min_epochs <= train.epochs <= defaults.max_epochs
    steps = train.epochs * math.ceil(count / train.batch_size)
    assert steps >= defaults.steps or train.epochs == defaults.max_epochs
    fewer = (train.epochs - 1) * math.ceil(count / train.batch_size)
    assert fewer < defaults.steps or train.epochs == defaults.min_epochs, "no more than needed"


@given(presets, clips, clips)
def test_more_clips_never_get_more_epochs(preset: str, first: int, second: int) -> None:
    few, many = sorted((first, second))
    less, more = (resolve_training(TrainSection(), preset, count) for count in (many, few))
    assert less is not None and more is not None
    assert less.epochs <= more.epochs


@given(
    presets,
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 500),
            "batch_size": st.integers(1, 1024),
            "learning_rate": st.floats(1e-8, 1.0),
            "warmup": st.floats(0, 0.9),
            "workers": st.integers(1, 8),
        },
    ),
    clips,
)
def test_what_the_job_file_sets_is_kept(
    preset: str, settings: dict[str, float], count: int
) -> None:
    train = resolve_training(TrainSection.model_validate(settings), preset, count)
    assert train is not None
    assert {name: getattr(train, name) for name in settings} == settings
    assert resolve_training(train, preset, None) == train, "nothing is left to decide"
    assert TrainConfig.model_validate(train.model_dump()) == train


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_published_heads_keep_the_published_rate_and_batch(preset: str) -> None:
    train = resolve_training(TrainSection(), preset, 300)
    assert train is not None
    own = {"small-": (1e-3, 16), "light-": (2e-3, 16), "va-": (1e-4, 16), "paper-va-": (2e-5, 16)}
    expected = next((own[start] for start in own if preset.startswith(start)), (5e-5, 64))
    assert (train.learning_rate, train.batch_size) == expected


def test_epochs_are_unknown_until_the_clips_are_counted() -> None:
    assert resolve_training(TrainSection(), "small-student", None) is None
    assert resolve_training(TrainSection(epochs=3), "small-student", None) is not None
