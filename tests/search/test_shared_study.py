"""Opening, joining and ending a search that several drivers share. No Ray."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from helpers.search_case import study_of, write_spec

from multistill.config import SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.search import study as study_module
from multistill.search.cost import ENCODERS
from multistill.search.experiment import ExperimentResult
from multistill.search.spec import SearchSpec
from multistill.search.trial_folders import trial_folder
from multistill.tracking.logger import NullLogger
from multistill.workspace import write_json


@pytest.fixture
def nodes(monkeypatch):
    """Resources of a cluster that does not run."""
    nodes = [{"CPU": 8.0}]
    monkeypatch.setattr(study_module, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(study_module, "dashboard_url", lambda: "http://127.0.0.1:8265")
    return nodes


def result(trials_ended: int, *, should_abort: bool = False) -> ExperimentResult:
    return ExperimentResult(trials_ended, 1, should_abort, exhausted=False)


def test_a_joiner_runs_trials_of_as_many_workers_as_the_search(tmp_path, monkeypatch, nodes):
    write_spec(tmp_path, workers_per_trial=2, cpus_per_trial=2)
    configs = []

    def experiment(spec, out, logger, objective, *, joined):
        configs.append(spec.config)
        return result(1)

    monkeypatch.setattr(study_module, "_run_experiment", experiment)
    assert study_module.join(tmp_path, config=SearchConfig(concurrent=3)) == 1
    assert [(c.workers_per_trial, c.cpus_per_trial, c.concurrent) for c in configs] == [(2, 2, 3)]


def test_the_number_of_workers_is_fixed_until_interrupted_trials_have_ended(tmp_path):
    spec = write_spec(tmp_path, workers_per_trial=2)
    study = study_of(tmp_path, spec)
    trial = study.ask()
    trial_folder(tmp_path, trial.number).mkdir(parents=True)
    other = replace(spec, config=SearchConfig(workers_per_trial=1))
    with pytest.raises(UsageError, match=r"of 2 workers each.*back to 2"):
        study_module._open(other, tmp_path)
    study.tell(trial, 0.5)
    assert study_module._open(other, tmp_path).config.workers_per_trial == 1
    assert SearchSpec.read(tmp_path).config.workers_per_trial == 1


def test_a_joiner_times_the_encoders_if_no_other_driver_has(tmp_path, monkeypatch, nodes):
    spec = write_spec(tmp_path, second="latency")

    def time_encoders(base, out):
        assert base == spec.base
        write_json(out / ENCODERS, {})

    task = SimpleNamespace(remote=time_encoders)
    ray = SimpleNamespace(
        remote=lambda function: SimpleNamespace(options=lambda **resources: task),
        get=lambda reference: reference,
    )
    monkeypatch.setattr(study_module, "ray", ray)

    def experiment(spec, out, logger, objective, *, joined):
        assert (out / ENCODERS).exists()
        return result(0)

    monkeypatch.setattr(study_module, "_run_experiment", experiment)
    assert study_module.join(tmp_path) == 0


def test_a_joiner_whose_trials_all_fail_raises_the_last_reason(tmp_path, monkeypatch, nodes):
    study = study_of(tmp_path, write_spec(tmp_path))
    trial = study.ask()
    trial.set_user_attr("outcome", {"reason": "no such mount"})
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    monkeypatch.setattr(
        study_module, "_run_experiment", lambda *args, **more: result(3, should_abort=True)
    )
    with pytest.raises(MultistillError, match=r"one after another \(1 of.*no such mount"):
        study_module.join(tmp_path)


def test_a_search_with_results_is_not_joined_and_its_folder_not_changed(
    tmp_path, monkeypatch, nodes
):
    spec = write_spec(tmp_path)
    write_json(tmp_path / "study.json", {})
    with pytest.raises(UsageError, match="has no trials left to start"):
        study_module.join(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"search.json", "study.json"}
    with pytest.raises(UsageError, match="has no trials left to start"):  # results just written
        study_module._run_experiment(spec, tmp_path, NullLogger(), None, joined=True)
    assert not (tmp_path / "drivers").exists() and not (tmp_path / "study.log").exists()


def test_latency_of_trials_without_the_gpu_is_refused(tmp_path, nodes):
    spec = write_spec(tmp_path, second="latency", workers_per_trial=2)
    study_module._check(spec)
    nodes[:] = [{"CPU": 8.0, "GPU": 2.0}]
    with pytest.raises(UsageError, match="holds no GPU where `workers_per_trial`"):
        study_module._check(spec)
