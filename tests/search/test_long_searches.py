"""What a hand-out costs must not grow with the study, and what it gives must not change by that."""

from __future__ import annotations

import random

import optuna
import pytest
from helpers.search_case import DISTRIBUTIONS, TEMPERATURE, make_spec, study_of
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from multistill.search import long_studies
from multistill.search.journal_file import JournalFile
from multistill.search.locks import StudyLock
from multistill.search.long_studies import WindowedTPESampler, has_trial, look_for_waiting_only


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def finished(value: float, temperature: float) -> FrozenTrial:
    return create_trial(
        params={TEMPERATURE: temperature},
        distributions={TEMPERATURE: DISTRIBUTIONS[TEMPERATURE]},
        value=value,
    )


def test_the_journal_is_read_as_optuna_reads_it(tmp_path):
    study = study_of(tmp_path, make_spec())
    for _ in range(3):
        study.tell(study.ask(DISTRIBUTIONS), 0.5)
    path = tmp_path / "study.log"
    whole = list(JournalFileBackend(str(path)).read_logs(0))
    ours = JournalFile(path, StudyLock(tmp_path))
    for start in (0, 4, len(whole), 2, len(whole) - 1):  # forwards, and back again
        assert list(ours.read_logs(start)) == whole[start:]
    with path.open("ab") as stream:
        stream.write(b'{"op_code": 4')  # being written
    assert list(ours.read_logs(len(whole))) == []
    with path.open("ab") as stream:
        stream.write(b', "worker_id": "x"}\n')
    assert list(ours.read_logs(len(whole))) == [{"op_code": 4, "worker_id": "x"}]


def test_a_study_has_the_trials_that_were_created(tmp_path):
    study = study_of(tmp_path, make_spec())
    study.ask(DISTRIBUTIONS)
    assert [has_trial(study, number) for number in (0, 1)] == [True, False]


def test_a_waiting_trial_of_a_database_is_handed_out_first(tmp_path, monkeypatch):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    look_for_waiting_only(study)
    study.enqueue_trial({TEMPERATURE: 3.0})
    assert study.ask(DISTRIBUTIONS).params[TEMPERATURE] == 3.0
    monkeypatch.setattr(study._storage, "get_all_trials", None)  # reads all that are running
    assert study.ask().number == 1


def test_waiting_trials_of_a_journal_are_handed_out_first_whoever_added_them(tmp_path, monkeypatch):
    study, other = study_of(tmp_path, make_spec()), study_of(tmp_path, make_spec())
    look_for_waiting_only(study)
    study.ask()
    for temperature in (3.0, 4.0):
        other.enqueue_trial({TEMPERATURE: temperature})
    again = study_of(tmp_path, make_spec())  # opened while they wait
    look_for_waiting_only(again)
    asked = [each.ask(DISTRIBUTIONS) for each in (study, again, study)]
    assert [trial.number for trial in asked] == [1, 2, 3]
    assert [trial.params[TEMPERATURE] for trial in asked[:2]] == [3.0, 4.0]
    monkeypatch.setattr(study._storage, "get_all_trials", None)  # goes through all
    assert study.ask().number == 4


def suggestions(sampler: optuna.samplers.TPESampler, trials: list[FrozenTrial]) -> list[float]:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return [study.ask(DISTRIBUTIONS).params[TEMPERATURE] for _ in range(5)]


def test_a_study_within_the_window_is_modelled_whole():
    low, high = DISTRIBUTIONS[TEMPERATURE].low, DISTRIBUTIONS[TEMPERATURE].high
    trials = [finished(-abs(n - 30.0), low + (high - low) * n / 50) for n in range(50)]
    settings = {"seed": 3, "multivariate": True, "constant_liar": True}
    plain = optuna.samplers.TPESampler(**settings)
    assert suggestions(WindowedTPESampler(**settings), trials) == suggestions(plain, trials)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_of_a_long_study_the_best_the_running_and_the_latest_are_modelled(direction, monkeypatch):
    monkeypatch.setattr(long_studies, "_BEST", 2)
    monkeypatch.setattr(long_studies, "_LATEST", 3)
    sampler = WindowedTPESampler(n_startup_trials=4, seed=1)
    study = optuna.create_study(direction=direction, sampler=sampler)
    rng, early, running = random.Random(0), long_studies._Early(), []
    for number in range(60):
        running.append(study.ask(DISTRIBUTIONS))
        if number % 4:  # soon or late
            study.tell(running.pop(rng.randrange(len(running))), rng.random())
        trials = study.get_trials()
        if rng.random() < 0.4 or len(trials) <= 5:
            continue
        best = [trial for trial in trials[:-3] if trial.state == TrialState.COMPLETE]
        best.sort(key=lambda trial: trial.value, reverse=direction == "maximize")
        expected = {trial.number for trial in [*best[:2], *running, *trials[-3:]]}
        kept = long_studies._Window.of(study, early)._get_trials()
        assert [trial.number for trial in kept] == sorted(expected)
    assert len(study.get_trials()) == 60  # the study itself stays whole
