"""The tables of a finished study, from hand-made studies with known answers."""

from __future__ import annotations

import csv
import time

import numpy as np
import optuna
from helpers.recording_logger import RecordingLogger
from helpers.search_case import (
    DISTRIBUTIONS,
    TEMPERATURE,
    WEIGHT,
    finish_trial,
    make_spec,
    study_of,
    write_spec,
)
from helpers.search_studies import make_study, row
from optuna.trial import TrialState, create_trial

from multistill.search.analysis import importance
from multistill.search.results import (
    TABLE,
    log_joined_trials,
    log_table,
    pareto,
    ranked,
    write_results,
)
from multistill.search.spec import SearchSpec
from multistill.search.storage import OUTCOME, quiet_optuna


def test_stopped_trials_rank_below_all_that_had_their_budget():
    rows = [row(0, 0.5), row(1, 0.9, "stopped"), row(2, 0.7), row(3, None, "failed")]
    assert [r["trial"] for r in ranked(rows, make_spec())] == [2, 0, 1]
    assert [r["trial"] for r in ranked(rows, make_spec(metric="loss"))] == [0, 2, 1]


def test_no_trial_dominates_one_of_the_pareto_front():
    random = np.random.default_rng(3)
    rows = [row(n, float(v), cost=float(c)) for n, (v, c) in enumerate(random.random((60, 2)))]
    front = pareto(rows, make_spec(second="parameters"))
    for member in front:
        assert not any(
            r["cost"] <= member["cost"] and r["value"] >= member["value"] and r is not member
            for r in rows
        )
    outside = [r for r in rows if r not in front]
    assert all(
        any(f["cost"] <= r["cost"] and f["value"] >= r["value"] for f in front) for r in outside
    )


def test_with_two_objectives_a_stopped_trial_is_on_no_front_and_in_no_importance(tmp_path):
    """A trial that was stopped early is cheap and looks good, and Optuna calls it complete."""
    with quiet_optuna():
        study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(30):
        stopped = number % 2 == 0
        study.add_trial(
            create_trial(
                params={TEMPERATURE: 1.0 + number / 10, WEIGHT: number / 30},
                distributions=DISTRIBUTIONS,
                values=[0.9 if stopped else number / 100, 1.0 if stopped else 100.0 + number],
                user_attrs={OUTCOME: {"epochs": 3, "cost": 1.0, "stopped": stopped}},
            )
        )
    summary = write_results(study, make_spec(second="parameters"), tmp_path, 1)
    assert summary["counts"] == {"complete": 15, "stopped": 15, "failed": 0, "running": 0}
    assert {member["trial"] % 2 for member in summary["pareto"]} == {1}
    assert summary["best"]["trial"] == 29
    assert summary["history"][-1]["trial"] == 29
    alone = [trial for trial in study.get_trials() if trial.number % 2]
    with quiet_optuna():
        only_complete = optuna.create_study(directions=["maximize", "minimize"])
    only_complete.add_trials(alone)
    assert summary["importance"] == importance(only_complete, make_spec().seed)


def test_two_thousand_trials_are_analysed_in_seconds(tmp_path):
    study = make_study(
        2000, lambda p: p[WEIGHT], lambda n: TrialState.PRUNED if n % 3 else TrialState.COMPLETE
    )
    started = time.process_time()
    summary = write_results(study, make_spec(), tmp_path, 1)
    assert summary["counts"] == {"complete": 667, "stopped": 1333, "failed": 0, "running": 0}
    assert summary["importance"][WEIGHT] > 0.9
    assert time.process_time() - started < 8


def test_settings_that_were_tried_twice_are_retrained_once(tmp_path):
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
    for temperature, value in [(2.0, 0.5), (4.0, 0.7), (4.0, 0.6), (3.0, 0.4)]:
        study.add_trial(
            create_trial(
                params={TEMPERATURE: temperature},
                distributions={TEMPERATURE: DISTRIBUTIONS[TEMPERATURE]},
                value=value,
                state=TrialState.COMPLETE,
            )
        )
    summary = write_results(study, make_spec(retrain=2), tmp_path, 1)
    assert summary["top"] == [{TEMPERATURE: 4.0}, {TEMPERATURE: 2.0}]


def test_the_time_of_earlier_processes_is_included(tmp_path):
    spec = write_spec(tmp_path)
    study = study_of(tmp_path, spec)
    finish_trial(study, 0.5, "a")
    first = {"seconds": 90.0, "training": 60.0, "slots": 1, "waits": [1.0, 3.0]}
    second = {"seconds": 10.0, "training": 10.0, "slots": 1, "waits": [8.0]}
    study.set_user_attr("round-a", first)
    study.set_user_attr("round-b", second)
    summary = write_results(study, spec, tmp_path, 2)
    assert (summary["seconds"], summary["training_share"]) == (100.0, 0.7)
    assert (summary["start_seconds"], summary["concurrency"]) == (3.0, 2)


def test_trials_of_joined_drivers_are_logged_once(tmp_path):
    study = study_of(tmp_path, write_spec(tmp_path))
    finish_trial(study, 0.5, "own")
    finish_trial(study, 0.6, "joined-a")
    logger = RecordingLogger()
    log_joined_trials(study, logger, "macro_f1")
    finish_trial(study, None, "joined-b")
    log_joined_trials(study_of(tmp_path, SearchSpec.read(tmp_path)), logger, "macro_f1")
    assert logger.child_names == ["trial 1", "trial 2"]


def test_the_table_of_a_search_has_a_row_per_trial_and_a_column_per_searched_name():
    rows = [
        {**row(0, 0.5), "params": {TEMPERATURE: 3.0}, "seconds": 1.0, "reason": ""},
        {**row(1, None, "failed"), "params": {WEIGHT: 0.5}, "seconds": 2.0, "reason": "NaN, why"},
    ]
    tables = []

    class Logger(RecordingLogger):
        def artifact(self, path, folder=""):  # the file is gone afterwards
            assert (path.name, folder) == (TABLE, "search")
            with path.open(newline="") as stream:
                tables.append(list(csv.DictReader(stream)))

    log_table(rows, Logger())
    [table] = tables
    assert [(r["trial"], r["value"], r["state"]) for r in table] == [
        ("0", "0.5", "complete"),
        ("1", "", "failed"),
    ]
    assert [(r[TEMPERATURE], r[WEIGHT]) for r in table] == [("3.0", ""), ("", "0.5")]
    assert table[1]["reason"] == "NaN, why"
