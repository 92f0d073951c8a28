"""Which trials a driver gets from the study, and in which state they end. No Ray."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from helpers.search_case import (
    TEMPERATURE,
    WEIGHT,
    choice,
    finish_trial,
    make_spec,
    study_of,
    write_spec,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from multistill.errors import MultistillError
from multistill.search.journal_file import JournalFile
from multistill.search.locks import DriverLease
from multistill.search.results import trial_rows
from multistill.search.searcher import SharedStudySearcher, _sampler
from multistill.search.space import suggest

FINAL = {"epoch": 9, "value": 0.7, "cost": 5.0, "seconds": 2.0, "finished": True}


def make_searcher(folder, spec, driver: str = "own", **more: Any) -> SharedStudySearcher:
    return SharedStudySearcher(
        spec,
        folder,
        **{
            "concurrency": 2,
            "max_trials": 10,
            "driver": driver,
            "stop_requested": lambda: False,
            "on_continue": lambda trial_id, trial: None,
            **more,
        },
    )


def test_the_student_as_configured_is_the_first_trial(tmp_path):
    searcher = make_searcher(tmp_path, write_spec(tmp_path))
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first["values"] == {TEMPERATURE: 2.0, WEIGHT: 0.5}
    assert second["values"] != first["values"]
    assert (first["number"], second["number"], first["concurrency"]) == (0, 1, 2)


def test_a_driver_gets_no_more_trials_than_it_may_run(tmp_path):
    searcher = make_searcher(tmp_path, write_spec(tmp_path, trials=4), max_trials=3)
    searcher.suggest("a"), searcher.suggest("b")
    assert searcher.suggest("c") is None, "two trials at the same time"
    searcher.on_trial_complete("a", FINAL)
    searcher.suggest("c")
    searcher.on_trial_complete("b", FINAL)
    assert searcher.exhausted and searcher.suggest("d") == Searcher.FINISHED


def test_no_more_trials_than_the_search_has_and_none_after_an_interrupt(tmp_path):
    spec = write_spec(tmp_path, trials=2)
    stopped = make_searcher(tmp_path, spec, stop_requested=lambda: True)
    assert stopped.suggest("a") == Searcher.FINISHED
    searcher = make_searcher(tmp_path, spec)
    for trial_id in ("a", "b"):
        searcher.suggest(trial_id)
        searcher.on_trial_complete(trial_id, FINAL)
    assert searcher.suggest("c") == Searcher.FINISHED and not searcher.exhausted


def test_orphans_of_dead_drivers_are_continued_and_trials_of_living_ones_are_not(tmp_path):
    spec = write_spec(tmp_path)
    with DriverLease(tmp_path) as living:
        other = make_searcher(tmp_path, spec, living.name)
        other.suggest("a")
    dead = make_searcher(tmp_path, spec, "dead")
    with DriverLease(tmp_path) as living:
        orphaned = dead.suggest("b")
        assert orphaned["number"] == 0, "its driver had exited"
        dead.on_trial_result("b", {"epoch": 1, "value": 0.4})
        study_of(tmp_path, spec).ask().set_user_attr("driver", living.name)
        continued = []
        own = make_searcher(
            tmp_path, spec, on_continue=lambda _, trial: continued.append(trial.intermediate_values)
        )
        assert own.suggest("c")["values"] == orphaned["values"]
        assert continued == [{1: 0.4}]
        assert own.suggest("d")["number"] == 2, "trial 1 has a living driver"


def test_orphans_of_a_driver_that_goes_later_are_continued(tmp_path):
    spec = write_spec(tmp_path)
    with DriverLease(tmp_path) as living:
        make_searcher(tmp_path, spec, living.name).suggest("a")
        own = make_searcher(tmp_path, spec)
        assert own.suggest("b")["number"] == 1, "trial 0 has a living driver"
    assert own.suggest("c")["number"] == 0


def test_orphans_of_a_driver_that_came_and_went_unseen_are_continued_at_the_end(tmp_path):
    spec = write_spec(tmp_path, trials=3)
    with DriverLease(tmp_path) as lease:
        own = make_searcher(tmp_path, spec, lease.name, concurrency=4)
        assert own.suggest("a")["number"] == 0
        with DriverLease(tmp_path) as other:
            make_searcher(tmp_path, spec, other.name).suggest("b")
        assert [own.suggest(name)["number"] for name in ("c", "d")] == [2, 1]
        assert own.suggest("e") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("config", "finished", "state", "value"),
    [
        ({}, True, TrialState.COMPLETE, 0.7),
        ({}, False, TrialState.PRUNED, 0.7),
        ({"second": "parameters"}, False, TrialState.COMPLETE, 0.7),
    ],
)
def test_a_stopped_trial_is_pruned_unless_there_are_two_objectives(
    tmp_path, config, finished, state, value
):
    spec = write_spec(tmp_path, **config)
    searcher = make_searcher(tmp_path, spec)
    searcher.suggest("a")
    searcher.on_trial_result("a", {**FINAL, "epoch": 3, "value": 0.5})
    searcher.on_trial_result("a", {**FINAL, "epoch": 4, "value": float("nan")})
    searcher.on_trial_complete("a", {**FINAL, "finished": finished})
    (trial,) = study_of(tmp_path, spec).get_trials()
    assert (trial.state, trial.values[0]) == (state, value)
    assert trial.intermediate_values == ({} if config else {3: 0.5, 9: 0.7})
    assert ("scheduler" in trial.user_attrs["outcome"]["reason"]) is not finished
    (result,) = trial_rows(study_of(tmp_path, spec))
    assert result["state"] == ("complete" if finished else "stopped")


def test_a_failed_trial_keeps_its_reason(tmp_path):
    spec = write_spec(tmp_path)
    searcher = make_searcher(tmp_path, spec)
    for trial_id, result in [("a", {**FINAL, "failure": "diverged"}), ("b", None)]:
        searcher.suggest(trial_id)
        searcher.on_trial_complete(trial_id, result)
    searcher.suggest("c")
    searcher.on_trial_complete("c", FINAL, error=True)
    assert "c" in searcher.running, "the logger fails it, with the reason"
    searcher.fail("c", "its process died")
    trials = study_of(tmp_path, spec).get_trials()
    assert {trial.state for trial in trials} == {TrialState.FAIL}
    assert [trial.user_attrs["outcome"]["reason"] for trial in trials] == [
        "diverged", "stopped before its first epoch", "its process died",
    ]  # fmt: skip


def test_failures_in_a_row_abort_the_search(tmp_path):
    spec = write_spec(tmp_path, trials=40)
    searcher = make_searcher(tmp_path, spec, max_trials=40)

    def fail(count: int) -> None:
        for _ in range(count):
            searcher.suggest("a")
            searcher.fail("a", "no such mount")

    fail(2)
    assert not searcher.should_abort
    fail(1)
    assert searcher.should_abort, "nothing has ever worked"
    searcher.suggest("b")
    searcher.on_trial_complete("b", FINAL)
    fail(9)
    assert not searcher.should_abort
    fail(1)
    assert searcher.should_abort


def test_failed_trials_count_once_a_trial_had_a_value(tmp_path):
    spec = write_spec(tmp_path, trials=2)
    study = study_of(tmp_path, spec)
    finish_trial(study, None, "dead")
    finish_trial(study, None, "dead")
    assert make_searcher(tmp_path, spec).suggest("a")["number"] == 2, "their cause was fixed"
    study.tell(2, 0.5)
    assert make_searcher(tmp_path, spec).suggest("b") == Searcher.FINISHED


def test_the_last_point_of_a_grid_ends_like_any_other():
    space = {WEIGHT: choice(0.2, 0.4), "model.width": choice(32, 64)}
    study = optuna.create_study(sampler=_sampler(make_spec(sampler="grid", space=space), 0))
    for _ in range(4):
        trial = study.ask()
        suggest(space, trial)
        study.tell(trial, 0.0)  # Optuna's own grid sampler raises here, outside its own loop
    points = {tuple(trial.params.values()) for trial in study.get_trials()}
    assert len(points) == 4


def test_a_continued_study_does_not_repeat_its_random_start(tmp_path):
    spec = write_spec(tmp_path, sampler="random")
    first = make_searcher(tmp_path, spec).suggest("a")["values"]
    study_of(tmp_path, spec).tell(0, 0.5)
    assert make_searcher(tmp_path, spec).suggest("a")["values"] != first


@pytest.mark.parametrize("when", ["an epoch", "the end", "the hand-out"])
def test_an_error_of_the_storage_is_noted_and_the_trial_continued(tmp_path, monkeypatch, when):
    spec = write_spec(tmp_path)
    with DriverLease(tmp_path) as lease:
        searcher = make_searcher(tmp_path, spec, lease.name)
        first = searcher.suggest("a")
        calls = []

        def failing(*_: object) -> None:
            calls.append(1)
            raise MultistillError("the database was away")

        monkeypatch.setattr(JournalFile, "append_logs", failing)
        if when == "an epoch":
            searcher.on_trial_result("a", FINAL)
        elif when == "the end":
            searcher.on_trial_complete("a", {**FINAL, "failure": "diverged"})
        else:
            assert searcher.suggest("b") == Searcher.FINISHED
        assert str(searcher.storage_error) == "the database was away"
        searcher.on_trial_complete("a", FINAL)
        searcher.fail("a", "its process died")
        searcher.add_attribute("took", 1.0)
        assert searcher.suggest("c") == Searcher.FINISHED
        assert len(calls) == 1, "it was asked again, which takes fifteen minutes each"
        assert "a" in searcher.running
        monkeypatch.undo()
    again = make_searcher(tmp_path, spec)
    assert again.suggest("a") == {**first, "driver": "own"}
    again.on_trial_complete("a", FINAL)
    assert study_of(tmp_path, spec).get_trials()[0].value == 0.7


def test_a_trial_that_met_a_full_disk_is_continued_by_the_next_driver(tmp_path):
    spec = write_spec(tmp_path)
    with DriverLease(tmp_path) as lease:
        searcher = make_searcher(tmp_path, spec, lease.name)
        first = searcher.suggest("a")
        searcher.on_trial_complete("a", {**FINAL, "failure": "it is full", "full_disk": True})
        assert searcher.full_disk == "it is full"
        assert searcher.suggest("b") == Searcher.FINISHED
    again = make_searcher(tmp_path, spec).suggest("a")
    assert (again["number"], again["values"]) == (first["number"], first["values"])
    [trial] = study_of(tmp_path, spec).get_trials()
    assert trial.state == TrialState.RUNNING
