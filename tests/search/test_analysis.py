"""What is read out of a finished study: hand-made studies with known answers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from helpers.search_case import TASK
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from multistill.config import SearchConfig
from multistill.search.analysis import grid, history, importance
from multistill.search.request import Request
from multistill.search.results import pareto, ranked, write_results
from multistill.search.storage import (
    JOURNAL,
    DriverLease,
    StudyLock,
    alive,
    open_storage,
    open_study,
    quiet_optuna,
)

T, W = "distillation.temperature", "distillation.weight"
SPACE = {T: FloatDistribution(1, 8), W: FloatDistribution(0, 1)}


def request(**config) -> Request:
    return Request(TASK, SearchConfig(**config), 1, "print", "study")


def row(trial, value, state="complete", epochs=9, cost=None, **params):
    return {
        "trial": trial, "value": value, "state": state, "epochs": epochs, "seconds": 1.0,
        "cost": cost, "params": params,
    }  # fmt: skip


def filled(count: int, value, states=None) -> optuna.Study:
    random = np.random.default_rng(0)
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
    trials = []
    for number in range(count):
        params = {T: float(random.uniform(1, 8)), W: float(random.uniform(0, 1))}
        state = states(number) if states else TrialState.COMPLETE
        trials.append(
            create_trial(
                params=params,
                distributions=SPACE,
                value=value(params) if state == TrialState.COMPLETE else None,
                intermediate_values={0: 0.5} if state == TrialState.PRUNED else None,
                state=state,
            )
        )
    study.add_trials(trials)
    return study


def test_the_parameter_that_decides_is_the_important_one():
    found = importance(filled(60, lambda p: -((p[W] - 0.5) ** 2) + 1e-3 * p[T]), 0)
    assert list(found) == [W, T]
    assert found[W] > 0.9
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)


def test_importance_is_silent_where_nothing_can_be_said():
    assert importance(filled(5, lambda p: p[W]), 0) == {}
    assert importance(filled(30, lambda p: 1.0), 0) == {}
    assert importance(filled(30, lambda p: p[W], lambda n: TrialState.FAIL), 0) == {}


def test_importance_compares_only_what_all_trials_have():
    study = filled(20, lambda p: p[W])
    study.add_trials(
        [
            create_trial(
                params={W: n / 20, "distillation.loss": "dist"},
                distributions={
                    W: SPACE[W],
                    "distillation.loss": CategoricalDistribution(["dist", "kd"]),
                },
                value=n / 20,
            )
            for n in range(20)
        ]
    )
    assert list(importance(study, 0)) == [W]


def test_history_holds_improvements_at_full_budget_and_what_they_cost():
    rows = [
        row(0, 0.5),
        row(1, 0.9, "stopped", epochs=3),
        row(2, 0.4),
        row(3, None, "failed", epochs=1),
        row(4, 0.6),
    ]
    found = history(rows, "max")
    assert [(h["trial"], h["spent_epochs"]) for h in found] == [(0, 9), (4, 9 + 3 + 9 + 1 + 9)]
    assert [h["trial"] for h in history(rows, "min")] == [0, 2]


def test_grid_cells_average_their_trials():
    points = [(1, 0, 0.2), (1, 0, 0.4), (7, 0.6, 0.9), (4, 0.3, 0.5)]
    rows = [row(n, value, **{T: t, W: w}) for n, (t, w, value) in enumerate(points)]
    rows.append(row(9, None, "failed"))
    found = grid(rows, T, W)
    assert found["mean"][0][0] == pytest.approx(0.3)
    assert found["mean"][5][5] == pytest.approx(0.9)
    assert found["mean"][0][5] is None
    assert np.sum(found["count"]) == 4
    assert len(found["x_edges"]) == len(found["y_edges"]) == 7
    assert grid(rows[:2], T, W) is None
    assert grid([], T, W) is None


def test_stopped_trials_rank_below_all_that_had_their_budget():
    rows = [row(0, 0.5), row(1, 0.9, "stopped"), row(2, 0.7), row(3, None, "failed")]
    assert [r["trial"] for r in ranked(rows, request())] == [2, 0, 1]
    assert [r["trial"] for r in ranked(rows, request(metric="loss"))] == [0, 2, 1]


def test_no_trial_beats_one_of_the_front_in_both():
    random = np.random.default_rng(3)
    rows = [row(n, float(v), cost=float(c)) for n, (v, c) in enumerate(random.random((60, 2)))]
    front = pareto(rows, request(second="parameters"))
    for member in front:
        assert not any(
            r["cost"] <= member["cost"] and r["value"] >= member["value"] and r is not member
            for r in rows
        )
    outside = [r for r in rows if r not in front]
    assert all(
        any(f["cost"] <= r["cost"] and f["value"] >= r["value"] for f in front) for r in outside
    )


def test_two_thousand_trials_are_analysed_in_seconds(tmp_path):
    study = filled(
        2000, lambda p: p[W], lambda n: TrialState.PRUNED if n % 3 else TrialState.COMPLETE
    )
    started = time.process_time()
    summary = write_results(study, request(), tmp_path, 1.0)
    assert summary["counts"] == {"complete": 667, "stopped": 1333, "failed": 0, "running": 0}
    assert summary["importance"][W] > 0.9
    assert time.process_time() - started < 8


# -- the study on disk ------------------------------------------------------------------


def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path):
    with quiet_optuna():
        study = open_study(open_storage(tmp_path, None), "study", ["maximize"])
        for value in (0.1, 0.2):
            study.tell(study.ask(SPACE), value)
        whole = (tmp_path / JOURNAL).read_bytes()
        (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code": 4, "worker')
        again = open_study(open_storage(tmp_path, None), "study", ["maximize"])
        again.tell(again.ask(SPACE), 0.3)
        values = [t.value for t in open_study(
            open_storage(tmp_path, None), "study", ["maximize"]).trials]  # fmt: skip
    assert values == [0.1, 0.2, 0.3]


def test_a_driver_is_alive_exactly_while_it_holds_its_lease(tmp_path: Path):
    assert not alive(tmp_path, "nobody")
    with DriverLease(tmp_path) as lease, StudyLock(tmp_path):
        assert alive(tmp_path, lease.name)
        assert alive(tmp_path, lease.name), "asking does not end a life"
    assert not alive(tmp_path, lease.name)


def test_a_running_trial_goes_on_in_another_process_under_its_number(tmp_path):
    with quiet_optuna():
        first = open_study(open_storage(tmp_path, None), "study", ["maximize"])
        begun = first.ask(SPACE)
        begun.report(0.4, 1)
        second = open_study(open_storage(tmp_path, None), "study", ["maximize"])
        (orphan,) = second.get_trials(states=(TrialState.RUNNING,))
        taken = optuna.Trial(second, orphan._trial_id)
        assert taken.suggest_float(T, 1, 8) == begun.params[T]
        taken.report(0.6, 2)
        second.tell(taken, 0.6)
        trials = open_study(open_storage(tmp_path, None), "study", ["maximize"]).trials
    assert [(t.number, t.value, t.intermediate_values) for t in trials] == [
        (begun.number, 0.6, {1: 0.4, 2: 0.6})
    ]


def test_a_setting_that_was_tried_twice_is_retrained_once(tmp_path):
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
    for temperature, value in [(2.0, 0.5), (4.0, 0.7), (4.0, 0.6), (3.0, 0.4)]:
        study.add_trial(
            create_trial(
                params={T: temperature}, distributions={T: SPACE[T]}, value=value,
                state=TrialState.COMPLETE,
            )
        )  # fmt: skip
    summary = write_results(study, request(retrain=2), tmp_path, 1.0)
    assert summary["top"] == [{T: 4.0}, {T: 2.0}]
