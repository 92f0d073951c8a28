"""Advice about databases, and about the study of a search in one: provoked and followed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
import sqlalchemy
from helpers.advice import says, told
from helpers.postgres import Postgres, programs
from helpers.search_case import DISTRIBUTIONS, make_spec

from multistill.databases import explain, problem_of, sqlite_url
from multistill.errors import UsageError
from multistill.search.storage import open_storage, open_study, storage_problem
from multistill.search.study import _open


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says("{} is a folder; give the path of a file in it", problem_of(sqlite_url(tmp_path)))
    assert problem_of(sqlite_url(tmp_path / "x.db")) is None
    lost = sqlite_url(tmp_path / "lost" / "x.db")
    says("the folder {} does not exist; create it, mount it or correct the path", problem_of(lost))
    (tmp_path / "lost").mkdir()
    assert problem_of(lost) is None
    with monkeypatch.context() as patch:  # root may write everywhere
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        denied = problem_of(sqlite_url(tmp_path / "x.db"))
        says("cannot be written; change its permissions or choose another folder", denied)
        assert problem_of(lost) is None, "another folder"
    assert problem_of(sqlite_url(tmp_path / "x.db")) is None


def test_files_that_are_no_databases(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_text("name,label\n" * 100)
    says("{} is no SQLite database; give another file", problem_of(sqlite_url(file)))
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    assert problem_of(sqlite_url(tmp_path / "other.db")) is None
    with pytest.raises(sqlalchemy.exc.OperationalError) as failed:
        engine = sqlalchemy.create_engine(sqlite_url(tmp_path / "other.db"))
        with engine.connect() as other:
            other.exec_driver_sql("SELECT y FROM nosuch")
    says("{}; give another file", explain(sqlite_url(tmp_path / "other.db"), failed.value))


def test_a_file_that_another_program_has_locked(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "x.db")
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 0})

    def write() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x)")

    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlalchemy.exc.OperationalError) as failed:
        write()
    says(
        "another program has locked the file; end that program or wait", explain(url, failed.value)
    )
    holder.close()
    write()


def test_a_full_disk(tmp_path: Path) -> None:
    """A database that may not grow: SQLite's error is that of a full disk."""
    url = sqlite_url(tmp_path / "x.db")
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count = 2")
        fill = "INSERT INTO t VALUES (zeroblob(100000))"
        with pytest.raises(sqlalchemy.exc.OperationalError) as failed:
            connection.exec_driver_sql(fill)
        says(
            "its disk is full; free some space there and run the same command again",
            explain(url, failed.value),
        )
        connection.exec_driver_sql("PRAGMA max_page_count = 1000")
        connection.exec_driver_sql(fill)


def test_addresses_and_drivers(tmp_path: Path) -> None:
    says(
        "SQLAlchemy knows no such database; use sqlite:///FILE or postgresql://USER@HOST/NAME",
        problem_of("nosuch://user@host/name"),
    )
    assert problem_of(f"sqlite:///{tmp_path}/x.db") is None
    assert "no such database" not in str(problem_of("postgresql://user@127.0.0.1:1/name"))
    missing = str(problem_of("mysql+pymysql://u@127.0.0.1/d"))
    says("the Python module `{}` is not installed; run `pip install {}`", missing)
    command = missing.split("run `")[1].rstrip("`")
    assert command == "pip install PyMySQL", "the package of `pymysql` is called otherwise"
    error = RuntimeError("Access denied for user 'u'@'h' (using password: NO)")
    says(
        "put the password in an option file, and add ?read_default_file=FILE to the address",
        explain("mysql+pymysql://u@h/d", error),
    )
    url = sqlalchemy.make_url("mysql+pymysql://u@h/d?read_default_file=/etc/db.cnf")
    from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql

    _, options = MySQLDialect_pymysql().create_connect_args(url)
    assert options["read_default_file"] == "/etc/db.cnf"


def test_the_storage_of_a_search(tmp_path: Path) -> None:
    lost = f"sqlite:///{tmp_path}/no/x.db"
    says(
        "cannot be reached: {}, or remove the key to keep the study in the workspace",
        storage_problem(lost),
    )
    with pytest.raises(UsageError, match="or remove the key"):
        _open(make_spec(storage=lost), tmp_path / "out")
    assert storage_problem(None) is None
    _open(make_spec(storage=None), tmp_path / "out")


@pytest.mark.parametrize("gone", [False, True])
def test_a_study_that_is_stored_elsewhere(tmp_path: Path, gone: bool) -> None:
    out, databases = tmp_path / "out", tmp_path / "databases"
    databases.mkdir()
    first = make_spec(storage=f"sqlite:///{databases}/x.db")
    other = make_spec(storage=f"sqlite:///{tmp_path}/y.db")
    opened = _open(first, out)
    study = open_study(open_storage(out, opened.config.storage), opened.study, opened.directions)
    study.tell(study.ask(DISTRIBUTIONS), 0.5)
    if gone:
        databases.rename(tmp_path / "moved")
        with told("`search.storage` back and make it reachable to continue") as refused:
            _open(other, out)
        (tmp_path / "moved").rename(databases)
    else:
        with told("is stored in {}; set `search.storage` back to continue it") as refused:
            _open(other, out)
    says("or remove {} to start the search again", refused.value)
    assert _open(first, out).study == opened.study
    shutil.rmtree(out)
    assert _open(other, out).config.storage == other.config.storage


@pytest.mark.server
def test_a_postgres_server(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.url()
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    monkeypatch.delenv("PGPASSWORD", raising=False)
    says("put the password in PGPASSWORD or ~/.pgpass", problem_of(url))
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert problem_of(url) is None
    missing = postgres.url("another")
    says("the server answers, but {}; create it with `createdb`", problem_of(missing))
    parts = sqlalchemy.make_url(missing)
    createdb = Path(str(programs())) / "createdb"
    arguments = ["-h", str(parts.host), "-p", str(parts.port), "-U", str(parts.username)]
    subprocess.run([createdb, *arguments, "another"], check=True)
    assert problem_of(missing) is None
    engine = sqlalchemy.create_engine(missing, isolation_level="AUTOCOMMIT")
    with engine.connect() as admin:
        admin.exec_driver_sql("CREATE ROLE reader LOGIN PASSWORD 'r'")
        admin.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    reader = parts.set(username="reader")
    monkeypatch.setenv("PGPASSWORD", "r")

    def create() -> None:
        with sqlalchemy.create_engine(reader).begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")

    with pytest.raises(sqlalchemy.exc.ProgrammingError) as denied:
        create()
    says("{}; grant the user the right to create tables there", explain(missing, denied.value))
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    with engine.connect() as admin:
        admin.exec_driver_sql("GRANT CREATE ON SCHEMA public TO reader")
    monkeypatch.setenv("PGPASSWORD", "r")
    create()
    says("check the address and that the server runs", problem_of("postgresql://u@127.0.0.1:1/d"))
