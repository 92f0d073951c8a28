"""Hyperparameters of heads: round trip and validation."""

from __future__ import annotations

import pytest

from multistill.errors import UsageError
from multistill.models.presets import PRESETS, resolve
from multistill.models.spec import ModelSpec


def test_specs_survive_a_round_trip_through_dicts() -> None:
    for spec in PRESETS.values():
        assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_invalid_values_are_refused_with_the_field_and_the_allowed_values() -> None:
    with pytest.raises(UsageError, match="width 66 is not divisible by heads 4"):
        resolve("small-teacher", {"width": 66})
    with pytest.raises(UsageError, match="unknown field `wide`"):
        resolve("small-student", {"wide": 3})
    with pytest.raises(UsageError, match="pooling `max` is not one of published, mean"):
        resolve("small-student", {"pooling": "max"})
    with pytest.raises(UsageError, match="field `modality` is missing"):
        ModelSpec.from_dict({"width": 8})
