"""Presets by name, with overrides."""

from __future__ import annotations

import pytest

from multistill.errors import UsageError
from multistill.models.presets import resolve


def test_overrides_replace_values_of_a_preset() -> None:
    assert resolve("small-student", {"layers": 3}).layers == 3


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean `small-student`"):
        resolve("smal-student", {})
