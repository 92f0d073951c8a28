"""What the runs of trials are called, and how they end. No Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from helpers.recording_logger import RecordingLogger
from helpers.search_case import make_spec, study_of

from multistill.search import experiment
from multistill.search.experiment import _EndedFolders, _trial_logger, run_experiment
from multistill.search.searcher import SharedStudySearcher
from multistill.search.spec import SearchSpec
from multistill.search.study import _open
from multistill.search.trial_folders import trial_folder

FINAL = {"epoch": 9, "value": 0.7, "cost": 5.0, "seconds": 2.0, "finished": True, "metrics": {}}


@pytest.fixture
def searcher(tmp_path):
    _open(make_spec(), tmp_path, tmp_path / "others")
    return searcher_of(tmp_path)


def searcher_of(folder, driver: str = "own") -> SharedStudySearcher:
    return SharedStudySearcher(
        SearchSpec.read(folder),
        folder,
        concurrency=2,
        max_trials=10,
        driver=driver,
        stop_requested=lambda: False,
        on_continue=lambda trial_id, trial: None,
    )


def tune_trial(searcher: SharedStudySearcher, folder, **result: Any) -> Any:
    """A trial of Tune's that was handed out and ended."""
    config = searcher.suggest("a")
    trial_folder(folder, config["number"]).mkdir(parents=True, exist_ok=True)
    metrics = SimpleNamespace(metric_analysis={}, metric_n_steps={})
    return SimpleNamespace(
        trial_id="a",
        config=config,
        last_result={**FINAL, **result},
        error_file=None,
        run_metadata=metrics,
    )


def logger_of(searcher: SharedStudySearcher, folder, logger: RecordingLogger):
    folders = _EndedFolders(folder, wait_for_workers=False)
    return _trial_logger(logger, searcher, SearchSpec.read(folder), folders, 0.0)


def test_a_search_that_begins_anew_continues_no_run_and_one_that_goes_on_does(tmp_path):
    logger, keys = RecordingLogger(), []
    for driver, folder in enumerate(("first", "first", "anew")):
        out = tmp_path / folder
        _open(make_spec(), out, tmp_path / "others")
        searcher = searcher_of(out, str(driver))
        trials = logger_of(searcher, out, logger)
        trials.on_trial_start(0, [], tune_trial(searcher, out))
        keys.append([*logger.children])
    assert logger.child_names == ["trial 0"] * 3
    assert [len(each) for each in keys] == [1, 1, 2]


@pytest.mark.parametrize("ends", ["completes", "fails"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_trial_whose_end_is_not_in_the_study_keeps_its_folder(
    tmp_path, searcher, monkeypatch, ends, stored
):
    logger = RecordingLogger()
    trials, trial = logger_of(searcher, tmp_path, logger), tune_trial(searcher, tmp_path)
    trials.on_trial_start(0, [], trial)
    if not stored:
        searcher.storage_error = OSError("away")
    searcher.on_trial_complete("a", trial.last_result, error=ends == "fails")
    (trials.on_trial_complete if ends == "completes" else trials.on_trial_error)(0, [], trial)
    [child] = logger.children.values()
    kept = trial_folder(tmp_path, 0).exists()
    if stored:
        assert (child.status, kept) == ({"completes": "FINISHED", "fails": "FAILED"}[ends], False)
    else:
        assert (child.status, kept) == ("KILLED", True)
    assert trials.trials_ended == stored


@pytest.mark.parametrize("how", ["a second Ctrl-C", "an error of the storage"])
def test_nothing_is_asked_of_the_study_after_the_end(tmp_path, searcher, monkeypatch, how):
    asked: list[str] = []

    class Tuner:
        def __init__(self, *_: object, tune_config: Any, **__: object) -> None:
            self.searcher = tune_config.search_alg

        def fit(self) -> None:
            if how == "a second Ctrl-C":
                raise KeyboardInterrupt
            self.searcher.storage_error = ConnectionError("the database is away")

    monkeypatch.setattr(experiment.tune, "Tuner", Tuner)
    monkeypatch.setattr(experiment, "_trainable", lambda *_: None)
    monkeypatch.setattr("multistill.cluster.handback.remove_note", lambda key: None)  # no Ray here
    monkeypatch.setattr(optuna.Study, "set_user_attr", lambda self, name, value: asked.append(name))
    spec = SearchSpec.read(tmp_path)
    raised = KeyboardInterrupt if how == "a second Ctrl-C" else ConnectionError
    with pytest.raises(raised):
        run_experiment(spec, tmp_path, RecordingLogger(), None, driver="a", concurrency=1, gpus=0.0)
    assert asked == []
    assert study_of(tmp_path, spec).get_trials() == []
