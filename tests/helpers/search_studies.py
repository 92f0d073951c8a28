"""Hand-made studies and rows of trials with known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from helpers.search_case import DISTRIBUTIONS, TEMPERATURE, WEIGHT
from multistill.search.storage import quiet_optuna


def row(
    trial: int,
    value: float | None,
    state: str = "complete",
    epochs: int = 9,
    cost: float | None = None,
    **params: Any,
) -> dict[str, Any]:
    """A row of trials.parquet."""
    return {
        "trial": trial,
        "value": value,
        "state": state,
        "epochs": epochs,
        "seconds": 1.0,
        "cost": cost,
        "params": params,
    }


def make_study(
    count: int,
    value: Callable[[dict[str, float]], float],
    state_of: Callable[[int], TrialState] = lambda number: TrialState.COMPLETE,
) -> optuna.Study:
    """A study of random points; `value` computes the value of a complete trial."""
    random = np.random.default_rng(0)
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
    trials = []
    for number in range(count):
        params = {TEMPERATURE: float(random.uniform(1, 8)), WEIGHT: float(random.uniform(0, 1))}
        state = state_of(number)
        trials.append(
            create_trial(
                params=params,
                distributions=DISTRIBUTIONS,
                value=value(params) if state == TrialState.COMPLETE else None,
                intermediate_values={0: 0.5} if state == TrialState.PRUNED else None,
                state=state,
            )
        )
    study.add_trials(trials)
    return study
