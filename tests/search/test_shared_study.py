"""What several drivers, or several processes of one, leave for each other. No Ray here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from helpers.search_case import TASK

from multistill.config import SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.search import study as searching
from multistill.search.cost import ENCODERS
from multistill.search.request import Request
from multistill.search.results import record_joined
from multistill.search.storage import (
    DriverLease,
    StudyLock,
    open_storage,
    open_study,
    trial_folder,
    trial_lock,
    unfinished_trials,
    wait_for_other_drivers,
)
from multistill.search.warm_start import copy_trials
from multistill.tracking.logger import NullLogger
from multistill.workspace import write_json


def asked(folder: Path, **config) -> Request:
    request = Request(TASK, SearchConfig(**config), 1, "print", "study")
    request.write(folder)
    return request


def study_of(folder: Path, request: Request) -> optuna.Study:
    return open_study(open_storage(folder, None), request.study, request.directions)


def ended(study: optuna.Study, value: float | None, driver: str) -> int:
    trial = study.ask()
    trial.set_user_attr("driver", driver)
    trial.set_user_attr("outcome", {"epochs": 2, "seconds": 1.0, "reason": ""})
    study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
    return trial.number


@pytest.fixture
def nodes(monkeypatch):
    """A cluster that is only asked what it has."""
    found = [{"CPU": 8.0}]
    monkeypatch.setattr(searching, "cluster_nodes", lambda: found)
    monkeypatch.setattr(searching.ray._private.worker, "get_dashboard_url", lambda: "here")
    return found


def test_a_joiner_runs_trials_of_as_many_workers_as_the_search(tmp_path, monkeypatch, nodes):
    asked(tmp_path, workers_per_trial=2, cpus_per_trial=2)
    seen = []

    def one_round(request, out, logger, objective, *, joined):
        seen.append(request.config)
        return searching.Round(ended=1, concurrency=1, should_abort=False, full=False)

    monkeypatch.setattr(searching, "_round", one_round)
    assert searching.join(tmp_path, config=SearchConfig(concurrent=3)) == 1
    assert [(c.workers_per_trial, c.cpus_per_trial, c.concurrent) for c in seen] == [(2, 2, 3)]


def test_other_workers_wait_until_cut_off_trials_have_ended(tmp_path):
    request = asked(tmp_path, workers_per_trial=2)
    study = study_of(tmp_path, request)
    trial = study.ask()
    trial_folder(tmp_path, trial.number).mkdir(parents=True)
    other = replace(request, config=SearchConfig(workers_per_trial=1))
    with pytest.raises(UsageError, match=r"of 2 workers each.*back to 2"):
        searching._opened(other, tmp_path)
    study.tell(trial, 0.5)
    assert searching._opened(other, tmp_path).config.workers_per_trial == 1
    assert Request.read(tmp_path).config.workers_per_trial == 1


def test_folders_of_ended_trials_go_unless_a_process_writes_to_them(tmp_path):
    study = study_of(tmp_path, asked(tmp_path))
    written, left = ended(study, 0.5, "a"), ended(study, None, "a")
    running = study.ask().number
    for number in (written, left, running):
        trial_folder(tmp_path, number).mkdir(parents=True)
        (trial_folder(tmp_path, number) / "optimizer.safetensors").touch()
    with trial_lock(tmp_path, written):
        assert unfinished_trials(tmp_path, study) == [written, running]
    assert unfinished_trials(tmp_path, study) == [running]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [f"{running:04d}"]


def test_a_joiner_times_the_encoders_where_the_owner_has_not_yet(tmp_path, monkeypatch, nodes):
    request = asked(tmp_path, second="latency")

    def timing(base, out):
        assert base == request.base
        write_json(out / ENCODERS, {})

    task = SimpleNamespace(remote=timing)
    fake = SimpleNamespace(
        remote=lambda function: SimpleNamespace(options=lambda **need: task), get=lambda none: none
    )
    monkeypatch.setattr(searching, "ray", fake)

    def one_round(request, out, logger, objective, *, joined):
        assert (out / ENCODERS).exists()
        return searching.Round(ended=0, concurrency=1, should_abort=False, full=False)

    monkeypatch.setattr(searching, "_round", one_round)
    assert searching.join(tmp_path) == 0


def test_a_hopeless_joiner_says_why_and_ends_in_error(tmp_path, monkeypatch, nodes):
    study = study_of(tmp_path, asked(tmp_path))
    trial = study.ask()
    trial.set_user_attr("outcome", {"reason": "no such mount"})
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    should_abort = searching.Round(ended=3, concurrency=1, should_abort=True, full=False)
    monkeypatch.setattr(searching, "_round", lambda *args, **more: should_abort)
    with pytest.raises(MultistillError, match=r"one after another \(1 of.*no such mount"):
        searching.join(tmp_path)


def test_a_search_in_its_finals_is_not_joined_and_nothing_is_made_in_its_folder(
    tmp_path, monkeypatch, nodes
):
    request = asked(tmp_path)
    write_json(tmp_path / "study.json", {})
    with pytest.raises(UsageError, match="has ended its trials"):
        searching.join(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"search.json", "study.json"}
    with pytest.raises(UsageError, match="has ended its trials"):  # it ended just now
        searching._round(request, tmp_path, NullLogger(), None, joined=True)
    assert not (tmp_path / "drivers").exists() and not (tmp_path / "study.log").exists()


def test_results_wait_for_the_other_drivers_and_keep_new_ones_out(tmp_path, monkeypatch):
    monkeypatch.setattr("multistill.search.storage.LEAVING_SECONDS", 0.3)
    with wait_for_other_drivers(tmp_path):
        guard = StudyLock(tmp_path)
        with pytest.raises(TimeoutError):
            guard._lock.acquire(timeout=0)
    waited = []
    monkeypatch.setattr("multistill.search.storage.time.sleep", waited.append)
    with DriverLease(tmp_path, joined=True), wait_for_other_drivers(tmp_path):
        assert waited, "it did not wait for the living driver"


def test_what_earlier_processes_spent_is_in_the_results(tmp_path):
    request = asked(tmp_path)
    study = study_of(tmp_path, request)
    ended(study, 0.5, "a")
    first = {"seconds": 90.0, "training": 60.0, "slots": 1, "waits": [1.0, 3.0]}
    second = {"seconds": 10.0, "training": 10.0, "slots": 1, "waits": [8.0]}
    study.set_user_attr("round-a", first)
    study.set_user_attr("round-b", second)
    summary = searching._write(study, request, tmp_path, 2)
    assert (summary["seconds"], summary["training_share"]) == (100.0, 0.7)
    assert (summary["start_seconds"], summary["concurrency"]) == (3.0, 2)


class Rows(NullLogger):
    def __init__(self) -> None:
        self.names: list[str] = []

    def child(self, name, key, kind):
        self.names.append(name)
        return NullLogger()


def test_joined_trials_are_recorded_once(tmp_path):
    study = study_of(tmp_path, asked(tmp_path))
    ended(study, 0.5, "own")
    ended(study, 0.6, "joined-a")
    logger = Rows()
    record_joined(study, logger)
    ended(study, None, "joined-b")
    record_joined(study_of(tmp_path, Request.read(tmp_path)), logger)
    assert logger.names == ["trial 1", "trial 2"]


def test_a_larger_search_takes_over_costs_and_no_drivers(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = asked(tmp_path / "old")
    study = study_of(tmp_path / "old", old)
    ended(study, 0.5, "joined-a")
    write_json(tmp_path / "old" / ENCODERS, {"milliseconds": {"audio": 12.5}})
    new = replace(old, study="larger")
    copy_trials(tmp_path / "old", new, tmp_path / "new")
    (trial,) = study_of(tmp_path / "new", new).get_trials()
    assert set(trial.user_attrs) == {"outcome"} and trial.value == 0.5
    same = [(tmp_path / name / ENCODERS).read_text() for name in ("old", "new")]
    assert same[0] == same[1]


def test_latency_of_trials_without_the_gpu_is_refused(tmp_path, nodes):
    request = asked(tmp_path, second="latency", workers_per_trial=2)
    searching._preflight(request)
    nodes[:] = [{"CPU": 8.0, "GPU": 2.0}]
    with pytest.raises(UsageError, match="holds no GPU where `workers_per_trial`"):
        searching._preflight(request)


def test_a_trial_of_several_workers_tells_the_launcher_how_many_run(tmp_path, monkeypatch):
    from multistill.search.workers import fit

    told = []
    monkeypatch.setattr(
        "multistill.training.launcher.train",
        lambda *args, concurrent_runs: told.append(concurrent_runs),
    )
    assert list(fit(TASK, state_dir=tmp_path, at_once=4)) == []
    assert told == [4]
