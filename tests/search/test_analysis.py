"""Importance, history and the T x weight plane, from studies with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.search_case import DISTRIBUTIONS, TEMPERATURE, WEIGHT
from helpers.search_studies import make_study, row
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from multistill.search.analysis import grid, history, importance


def test_the_parameter_that_decides_is_the_important_one():
    study = make_study(60, lambda p: -((p[WEIGHT] - 0.5) ** 2) + 1e-3 * p[TEMPERATURE])
    shares = importance(study, 0)
    assert list(shares) == [WEIGHT, TEMPERATURE]
    assert shares[WEIGHT] > 0.9
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_importance_is_empty_where_it_cannot_be_computed():
    assert importance(make_study(5, lambda p: p[WEIGHT]), 0) == {}
    assert importance(make_study(30, lambda p: 1.0), 0) == {}
    assert importance(make_study(30, lambda p: p[WEIGHT], lambda n: TrialState.FAIL), 0) == {}


def test_importance_compares_only_parameters_that_all_trials_have():
    study = make_study(20, lambda p: p[WEIGHT])
    study.add_trials(
        [
            create_trial(
                params={WEIGHT: n / 20, "distillation.loss": "dist"},
                distributions={
                    WEIGHT: DISTRIBUTIONS[WEIGHT],
                    "distillation.loss": CategoricalDistribution(["dist", "kd"]),
                },
                value=n / 20,
            )
            for n in range(20)
        ]
    )
    assert list(importance(study, 0)) == [WEIGHT]


def test_history_has_improvements_at_full_budget_and_their_cost():
    rows = [
        row(0, 0.5),
        row(1, 0.9, "stopped", epochs=3),
        row(2, 0.4),
        row(3, None, "failed", epochs=1),
        row(4, 0.6),
    ]
    improvements = history(rows, "max")
    assert [(i["trial"], i["spent_epochs"]) for i in improvements] == [
        (0, 9),
        (4, 9 + 3 + 9 + 1 + 9),
    ]
    assert [i["trial"] for i in history(rows, "min")] == [0, 2]


def test_grid_cells_average_their_trials():
    points = [(1, 0, 0.2), (1, 0, 0.4), (7, 0.6, 0.9), (4, 0.3, 0.5)]
    rows = [row(n, value, **{TEMPERATURE: t, WEIGHT: w}) for n, (t, w, value) in enumerate(points)]
    rows.append(row(9, None, "failed"))
    plane = grid(rows, TEMPERATURE, WEIGHT)
    assert plane["mean"][0][0] == pytest.approx(0.3)
    assert plane["mean"][5][5] == pytest.approx(0.9)
    assert plane["mean"][0][5] is None
    assert np.sum(plane["count"]) == 4
    assert len(plane["x_edges"]) == len(plane["y_edges"]) == 7
    assert grid(rows[:2], TEMPERATURE, WEIGHT) is None
    assert grid([], TEMPERATURE, WEIGHT) is None
