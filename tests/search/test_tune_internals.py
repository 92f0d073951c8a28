"""Private and undocumented names of Ray Tune and Optuna, against the installed versions.

No Ray runs here. A failure after an upgrade names what the search has to do differently.
"""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.search_case import DISTRIBUTIONS, TEMPERATURE, make_spec, study_of, write_spec
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune import tune as tune_run
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.experimental.output import get_air_verbosity
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.utils.callback import _create_default_callbacks

from multistill.search.experiment import run_experiment
from multistill.search.storage import quiet_optuna
from multistill.search.tune_internals import (
    ENVIRONMENT,
    NotPickled,
    drop_statistics,
    failure_reason,
    preempted,
    quiet_tune,
    reopen_trial,
    replay_trial,
)
from multistill.tracking.logger import NullLogger


@pytest.fixture
def storage(tmp_path, monkeypatch) -> StorageContext:
    # Folders of trials are below Ray's session folder, which needs a running Ray.
    monkeypatch.setattr(StorageContext, "_get_session_path", lambda self: str(tmp_path))
    return StorageContext(str(tmp_path), "experiment", trial_dir_name="trial")


@pytest.fixture
def tune_trial(storage) -> Trial:
    trial = Trial("student", stub=True, storage=storage, _setup_default_resource=False)
    trial.init_local_path()
    return trial


def default_callbacks() -> set[str]:
    return {type(callback).__name__ for callback in _create_default_callbacks([])}


def test_tune_adds_no_loggers_of_its_own():
    loggers = {"CSVLoggerCallback", "JsonLoggerCallback"}
    assert loggers <= default_callbacks()
    with quiet_tune():
        assert not loggers & default_callbacks()


def test_the_old_output_engine_is_used():
    assert get_air_verbosity(0) is not None
    with quiet_tune():
        assert get_air_verbosity(0) is None


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("TUNE_DISABLE_SIGINT_HANDLER", tune_run),
        ("TUNE_GLOBAL_CHECKPOINT_S", tune_controller),
    ],
)
def test_ray_still_reads_the_other_variables(name, reader):
    assert name in ENVIRONMENT
    assert name in inspect.getsource(reader)


def test_variables_and_handlers_are_restored(monkeypatch):
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    monkeypatch.delenv("TUNE_GLOBAL_CHECKPOINT_S", raising=False)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    with quiet_tune():
        assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT
        tune_run._setup_signal_catching()
        assert signal.getsignal(signal.SIGINT) == handlers[0], "TUNE_DISABLE_SIGINT_HANDLER"
        assert signal.getsignal(signal.SIGUSR1) != handlers[1]
    assert signal.getsignal(signal.SIGUSR1) == handlers[1]
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1"
    assert "TUNE_GLOBAL_CHECKPOINT_S" not in os.environ


def test_tune_can_be_quiet_in_another_thread():
    errors = []

    def run() -> None:
        try:
            with quiet_tune():
                pass
        except ValueError as error:  # signal handlers can be set in the main thread only
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


def test_objects_of_the_search_are_pickled_without_state():
    callback = NotPickled()
    callback.lock = threading.Lock()  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(callback)).__dict__ == {}


def asha() -> ASHAScheduler:
    return ASHAScheduler(
        time_attr="epoch", metric="value", mode="max", max_t=9, grace_period=1, reduction_factor=3
    )


def test_a_replayed_trial_counts_in_the_rungs_of_the_scheduler():
    result = {"epoch": 1, "value": 0.1}
    new: Any = Trial("student", stub=True, _setup_default_resource=False)
    for replayed, decision in [(False, TrialScheduler.CONTINUE), (True, TrialScheduler.STOP)]:
        scheduler = asha()
        if replayed:
            for number, value in enumerate((0.5, 0.6, 0.7)):
                past = create_trial(state=TrialState.PRUNED, intermediate_values={1: value})
                replay_trial(scheduler, f"trial-{number:04d}", past)
        scheduler.on_trial_add(None, new)  # type: ignore[arg-type]
        assert scheduler.on_trial_result(None, new, result) == decision  # type: ignore[arg-type]


def test_a_running_trial_continues_in_another_process_under_its_number(tmp_path):
    spec = make_spec()
    with quiet_optuna():
        started = study_of(tmp_path, spec).ask(DISTRIBUTIONS)
        started.report(0.4, 1)
        study = study_of(tmp_path, spec)
        (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
        continued = reopen_trial(study, orphan)
        assert continued.suggest_float(TEMPERATURE, 1, 8) == started.params[TEMPERATURE]
        continued.report(0.6, 2)
        study.tell(continued, 0.6)
        trials = study_of(tmp_path, spec).get_trials()
    assert [(t.number, t.value, t.intermediate_values) for t in trials] == [
        (started.number, 0.6, {1: 0.4, 2: 0.6})
    ]


def test_the_reason_of_a_failure_is_the_last_line_of_its_error(tune_trial):
    assert failure_reason(tune_trial) == "its process exited without an error message"
    tune_trial.handle_error(RuntimeError("first line\nCUDA out of memory"))  # type: ignore[arg-type]
    assert failure_reason(tune_trial) == "CUDA out of memory"


def test_a_dead_process_is_recognized_until_the_next_failure(tune_trial):
    tune_trial.handle_error(ActorDiedError())
    assert "its process died" in failure_reason(tune_trial)
    tune_trial.handle_error(RuntimeError("no such mount"))  # type: ignore[arg-type]
    assert failure_reason(tune_trial) == "no such mount"


def test_a_lost_node_is_recognized_before_ray_knows_that_it_is_dead(tune_trial):
    tune_trial.handle_error(ActorUnavailableError("RpcError: Socket closed", b"0" * 16))
    assert failure_reason(tune_trial) == "its process or its node was lost"


def test_an_exception_in_the_setup_of_a_trial_is_reported(tune_trial):
    message = "ModuleNotFoundError: No module named 'my_objectives'"
    cause = RayTaskError("__init__", f"Traceback:\n  ...\n{message}", ImportError())
    tune_trial.handle_error(ActorDiedError(cause))
    assert failure_reason(tune_trial) == message


def test_statistics_of_a_trial_are_freed(tune_trial):
    tune_trial.update_last_result({"value": 0.5, "training_iteration": 1})
    assert "value" in tune_trial.metric_analysis and "value" in tune_trial.metric_n_steps
    drop_statistics(tune_trial)
    assert tune_trial.metric_analysis == {} and tune_trial.metric_n_steps == {}


def test_a_reused_process_is_not_cleaned_up_before_it_is_reset(storage, monkeypatch):
    """Therefore `StudentTrainable.reset_config` calls `cleanup`."""
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", "")  # Tune sets it and leaves it
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", ENVIRONMENT["RAY_CHDIR_TO_TRIAL_DIR"])
    calls, folder = [], Path.cwd()

    class Recorded(tune.Trainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            calls.append("reset_config")
            return True

        def cleanup(self) -> None:
            calls.append("cleanup")

    assert Recorded({}, storage=storage).reset({}, storage=storage)
    assert calls == ["reset_config"]
    assert Path.cwd() == folder


@pytest.mark.parametrize(("error", "failures"), [(preempted(), 0), (RuntimeError("x"), 1)])
def test_a_trial_that_hands_back_is_not_counted_as_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, failures: int
) -> None:
    """As Tune gets it: an error that a method of the trainable raised, pickled by Ray."""
    trial = Trial("student", stub=True, _setup_default_resource=False)
    monkeypatch.setattr(Trial, "local_path", None)  # it would write the error there
    trial.handle_error(RayTaskError("train", "trace", pickle.loads(pickle.dumps(error))))
    assert trial.run_metadata.num_failures == failures
    assert trial.should_recover() == (failures <= trial.max_failures)


def test_tune_keeps_its_pickles_where_nobody_else_can_write(tmp_path, monkeypatch):
    """Tune unpickles the error of a failed trial from there, and the workspace is shared."""
    spec, seen = write_spec(tmp_path, trials=1), []

    class Tuner:
        def __init__(self, trainable, tune_config, run_config):
            self.storage = Path(run_config.storage_path)

        def fit(self):
            seen.append((self.storage, stat.S_IMODE(self.storage.stat().st_mode)))

    monkeypatch.setattr("multistill.search.experiment.tune.Tuner", Tuner)
    monkeypatch.setattr("multistill.search.experiment._trainable", lambda *_: None)
    monkeypatch.setattr("multistill.cluster.handback.remove_note", lambda key: None)  # no Ray here
    study_of(tmp_path, spec)
    run_experiment(spec, tmp_path, NullLogger(), None, driver="a", concurrency=1, gpus=0.0)
    [(storage, mode)] = seen
    assert mode == 0o700
    assert not storage.is_relative_to(tmp_path)
    assert not storage.exists()
