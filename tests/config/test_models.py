"""Synonyms of distillation losses, in the section and in the search space."""

from __future__ import annotations

import pytest
from helpers.search_case import STUDENT, TASK
from pydantic import ValidationError

from multistill.config import DistillationConfig, SearchConfig
from multistill.search.space import apply, check_space, current


def test_hinton_is_a_synonym_of_kd() -> None:
    assert DistillationConfig.model_validate({"loss": "hinton"}).loss == "kd"
    hinton, kd = (DistillationConfig.model_validate({"loss": name}) for name in ("hinton", "kd"))
    assert hinton.identity() == kd.identity()
    with pytest.raises(ValidationError, match="'kd', 'two-mse', 'dkd' or 'dist'"):
        DistillationConfig.model_validate({"loss": "hinten"})


def test_hinton_is_a_synonym_of_kd_in_the_search_space() -> None:
    def search(loss: str) -> SearchConfig:
        return SearchConfig.model_validate(
            {
                "space": {
                    "distillation.loss": {"choices": [loss, "dkd"]},
                    "distillation.temperature": {
                        "low": 1.0,
                        "high": 8.0,
                        "when": {"distillation.loss": [loss]},
                    },
                }
            }
        )

    space = search("hinton").space
    assert search("hinton").identity() == search("kd").identity()
    assert check_space(space, STUDENT) == []
    assert current(TASK, space) == {"distillation.loss": "kd", "distillation.temperature": 2.0}
    changed = apply(TASK, {"distillation.loss": "hinton"})
    assert changed.distillation is not None
    assert changed.distillation.loss == "kd"
