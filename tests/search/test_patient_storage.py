"""A search waits while the database of its study is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from helpers import search_objectives
from helpers.postgres import Postgres, programs, running_postgres
from helpers.recording_logger import RecordingLogger
from helpers.search_case import DISTRIBUTIONS, TASK, finish_trial, make_spec, study_of, write_spec
from optuna.exceptions import StorageInternalError

from multistill.config import SearchConfig
from multistill.errors import MultistillError
from multistill.search import patient_storage
from multistill.search.patient_storage import PatientStorage
from multistill.search.storage import open_storage, open_study
from multistill.search.study import _open, search


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_storage, "PAUSE_SECONDS", 0.05)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of its own, which is stopped."""
    if programs() is None:
        pytest.skip("PostgreSQL's programs are not installed: apt-get install postgresql")
    with running_postgres() as server:
        yield server


def failing(monkeypatch: pytest.MonkeyPatch, name: str, carries_out: bool) -> list[str]:
    """Let each call of a method of the storage fail once; returns the names of failed calls.

    Args:
        carries_out: the database does what was asked, and only the answer is lost.
    """
    original, failed = getattr(patient_storage.RDBStorage, name), []

    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        if len(failed) < 1:
            failed.append(name)
            if carries_out:
                original(self, *args, **kwargs)
            reason = sqlalchemy.exc.OperationalError("", {}, Exception("server closed"))
            raise StorageInternalError("lost") from reason
        return original(self, *args, **kwargs)

    monkeypatch.setattr(patient_storage.RDBStorage, name, call)
    return failed


@pytest.mark.parametrize("carries_out", [False, True])
@pytest.mark.parametrize(
    "name",
    ["set_trial_state_values", "_set_trial_param", "set_trial_user_attr", "_create_new_trial"],
)
def test_a_request_without_an_answer_is_repeated(
    name: str, carries_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: None
) -> None:
    messages: list[str] = []
    storage = PatientStorage(f"sqlite:///{tmp_path}/study.db", messages.append)
    study = open_study(storage, "study", ["maximize"])
    failed = failing(monkeypatch, name, carries_out)
    for value in (0.1, 0.2):
        trial = study.ask(DISTRIBUTIONS)
        trial.set_user_attr("key", "text")
        study.tell(trial, value)
    assert failed == [name]
    assert [text.split(":")[0] for text in messages] == [
        "the search waits for the database of its study",
        "the database of the study answers again; the search continues",
    ]
    trials = study.get_trials()
    finished = [trial for trial in trials if trial.state.is_finished()]
    assert [trial.value for trial in finished] == [0.1, 0.2]
    assert all(trial.user_attrs == {"key": "text"} for trial in finished)
    assert all(set(trial.params) == set(DISTRIBUTIONS) for trial in finished)
    # A trial that was created without an answer is left for `SharedStudySearcher`.
    assert len(trials) - len(finished) == (name == "_create_new_trial" and carries_out)


def test_a_copied_trial_without_an_answer_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: None
) -> None:
    old = write_spec(tmp_path / "old", trials=4)
    for value in (0.1, 0.2, 0.3):
        finish_trial(study_of(tmp_path / "old", old), value, "a")
    (tmp_path / "old" / "study.json").write_text("{}")
    failed = failing(monkeypatch, "_create_new_trial", carries_out=True)
    opened = _open(make_spec(trials=6, storage=f"sqlite:///{tmp_path}/s.db"), tmp_path / "new")
    assert failed
    storage = open_storage(tmp_path / "new", opened.config.storage)
    trials = open_study(storage, opened.study, opened.directions).get_trials()
    assert [trial.value for trial in trials] == [0.1, 0.2, 0.3]


def test_a_database_that_stays_away_ends_the_search_with_a_sentence(
    tmp_path: Path, pauses: None
) -> None:
    storage = PatientStorage(f"sqlite:///{tmp_path}/study.db", lambda text: None, patience=0.2)
    study = open_study(storage, "study", ["maximize"])
    storage.engine.dispose()
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db").mkdir()
    with pytest.raises(MultistillError, match=r"the same command then continues the search"):
        study.ask(DISTRIBUTIONS)


def test_an_error_that_no_waiting_helps_is_raised_at_once(tmp_path: Path) -> None:
    storage = PatientStorage(f"sqlite:///{tmp_path}/study.db", lambda text: None)
    started = time.monotonic()
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("nobody's")
    assert time.monotonic() - started < patient_storage.PAUSE_SECONDS


@pytest.mark.usefixtures("ray_session")
def test_a_search_whose_database_is_gone_for_a_while_has_the_trials_of_an_undisturbed_one(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, pauses: None
) -> None:
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    tables = {}
    for name in ("undisturbed", "disturbed"):
        config = SearchConfig(trials=5, concurrent=1, startup_trials=2, storage=postgres.url())

        def stop(logger: RecordingLogger, method: str, recorded: Any) -> None:
            if method == "child" and recorded.name == "trial 2":
                postgres.stop()
                threading.Timer(3.0, postgres.start).start()

        logger = RecordingLogger(on_event=stop if name == "disturbed" else None)
        out = tmp_path / name / "search"
        search(TASK, config, 1, out, logger, "0123", objective=search_objectives.fast)
        tables[name] = trials_of(out)
    assert tables["disturbed"] == tables["undisturbed"]
    assert len(tables["disturbed"]) == 5


def trials_of(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    names = ("trial", "state", "params", "epochs", "value")
    return [
        {name: row[name] for name in names}
        for row in pq.read_table(out / "trials.parquet").to_pylist()
    ]
