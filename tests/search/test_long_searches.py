"""What a hand-out costs must not grow with the study, and what it gives must not change by that."""

from __future__ import annotations

import optuna
import pytest
from helpers.search_case import DISTRIBUTIONS, TEMPERATURE, make_spec, study_of
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from multistill.search import tune_internals
from multistill.search.journal_file import JournalFile
from multistill.search.locks import StudyLock
from multistill.search.tune_internals import WindowedTPESampler, has_trial


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


def test_of_a_long_study_the_best_the_running_and_the_latest_are_modelled(monkeypatch):
    monkeypatch.setattr(tune_internals, "_BEST", 2)
    monkeypatch.setattr(tune_internals, "_LATEST", 3)
    low = DISTRIBUTIONS[TEMPERATURE].low
    study = optuna.create_study(direction="maximize", sampler=WindowedTPESampler(seed=1))
    study.add_trials([finished(value, low) for value in (0.1, 0.9, 0.2)])
    running = study.ask(DISTRIBUTIONS)
    study.add_trials([finished(value, low) for value in (0.3, 0.8, 0.0, 0.4, 0.5)])
    kept = tune_internals._best_and_latest(study.get_trials(), study)
    assert [trial.number for trial in kept] == [1, running.number, 5, 6, 7, 8]
    assert [trial.state for trial in kept][1] == TrialState.RUNNING
    assert study.ask(DISTRIBUTIONS).number == 9  # the study itself stays whole
