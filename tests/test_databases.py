"""Addresses of databases: every path survives its address, every error is told as what it is."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from helpers.postgres import Postgres
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from multistill.databases import explain, problem_of, sqlite_file, sqlite_url

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in {".", ".."} and len(name.encode()) < 200)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
@example("what?")
@example("repo_feature%2Flogin")
@example("100%41")
@example("a b#c&d=e;f")
@example("감정 인식")
@example("x:y@z")
def test_the_database_is_the_file_whatever_its_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    file = folder / "mlflow.db"
    file.unlink(missing_ok=True)
    url = sqlite_url(file)
    assert sqlite_file(url) == file
    assert problem_of(url) is None
    assert not file.exists(), "looking at it does not create it"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    engine.dispose()
    assert file.exists()
    assert [entry.name for entry in folder.iterdir()] == ["mlflow.db"]
    assert problem_of(url) is None


def test_mlflow_opens_the_quoted_address_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "what?" / "a%2Fb#c d"
    folder.mkdir(parents=True)
    client = MlflowClient(tracking_uri=sqlite_url(folder / "mlflow.db"))
    assert client.search_experiments()
    assert (folder / "mlflow.db").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["what?"]
    assert [entry.name for entry in (tmp_path / "what?").iterdir()] == ["a%2Fb#c d"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:////no/such/folder/x.db", "the folder /no/such/folder does not exist"),
        ("sqlite:////tmp", "/tmp is a folder; give the path of a file in it"),
        ("nosuch://user@host/name", "SQLAlchemy knows no such database"),
        ("postgresql://u@h:port/d", "SQLAlchemy knows no such database"),
        ("postgresql+nodriver://u@h/d", "SQLAlchemy knows no such database"),
        ("mysql://u@127.0.0.1/d", "`MySQLdb` is not installed; run `pip install mysqlclient`"),
        ("mysql+pymysql://u@127.0.0.1/d", "`pymysql` is not installed; run `pip install PyMySQL`"),
        ("postgresql+psycopg2://u@h/d", "run `pip install psycopg2-binary`"),
    ],
)
def test_what_cannot_be_reached_is_not_told_as_a_server_that_does_not_answer(
    url: str, sentence: str
) -> None:
    problem = problem_of(url)
    assert problem is not None
    assert sentence in problem
    assert "server runs" not in problem


def test_a_missing_driver_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    problem = problem_of("postgresql://u@127.0.0.1:1/d")
    assert problem is not None
    assert "No module" not in problem
    assert "pip install 'multistill[postgres]'" in problem or "import of psycopg" in problem


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "its disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "its disk is full"),
        (sqlite3.OperationalError("database is locked"), "locked the file"),
        (sqlite3.DatabaseError("file is not a database"), "is no SQLite database"),
        (ModuleNotFoundError("No module named 'psycopg'"), "pip install 'multistill[postgres]'"),
    ],
)
def test_errors_of_a_file_are_told_as_what_they_are(
    tmp_path: Path, error: Exception, sentence: str
) -> None:
    wrapped = RuntimeError("could not create the store")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        assert sentence in explain(sqlite_url(tmp_path / "x.db"), raised)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_text("name,label\n" * 100)
    assert "is no SQLite database" in str(problem_of(sqlite_url(file)))


def test_a_folder_without_the_right_to_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root, as which tests often run in containers, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert "cannot be written" in str(problem_of(sqlite_url(tmp_path / "x.db")))


def test_a_server_that_accepts_and_is_silent_is_told_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        problem = problem_of(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d")
    assert problem is not None
    assert "check the address and that the server runs" in problem
    assert time.monotonic() - start < 20


@pytest.mark.server
def test_the_advice_for_a_postgres_server_works(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from multistill.search.storage import open_storage, open_study, storage_problem

    for name in ("PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / ".pgpass"))
    url = postgres.url()
    for password in (None, "wrong"):
        if password:
            monkeypatch.setenv("PGPASSWORD", password)
        assert "put the password in PGPASSWORD or ~/.pgpass" in str(storage_problem(url))
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / ".pgpass").write_text(f"*:*:*:*:{postgres.password}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    assert storage_problem(url) is None
    (tmp_path / ".pgpass").unlink()
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert storage_problem(url) is None
    assert "create it with `createdb`" in str(storage_problem(postgres.url("other")))
    study = open_study(open_storage(tmp_path, url), "s", ["maximize"])
    study.tell(study.ask(), 0.5)
    again = open_study(open_storage(tmp_path, url), "s", ["maximize"])
    assert [trial.value for trial in again.get_trials()] == [0.5]
