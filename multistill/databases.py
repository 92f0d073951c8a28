"""Addresses of databases: SQLite files in them, a quick look at one, and what an error means.

MLflow and Optuna open databases through SQLAlchemy. Both retry or hide what happened, so the
run, `plan` and `doctor` look first: a connection, within seconds, that changes nothing.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

CHECK_TIMEOUT_SECONDS = 15.0
_CONNECT_TIMEOUT_SECONDS = 8
_PACKAGES = {
    "psycopg": "'multistill[postgres]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "PyMySQL",
}
"""What to install for the module of a driver, where the two have different names."""


def sqlite_url(file: Path) -> str:
    """SQLAlchemy's URL of a SQLite file, whatever characters its path has.

    Examples:
        >>> sqlite_url(Path("/data/ws/mlflow.db"))
        'sqlite:////data/ws/mlflow.db'
        >>> sqlite_url(Path("/data/what?/mlflow.db"))
        'sqlite:///%2Fdata%2Fwhat%3F%2Fmlflow.db'
    """
    path = str(file.absolute())
    if not re.search(r"[%?#]", path):
        return f"sqlite:///{path}"
    # The slashes as well: MLflow creates the parent folder of the path as it stands in the URL,
    # which would be a stray folder called `what%3F`.
    return f"sqlite:///{quote(path, safe=' ')}"


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database and for one in memory."""
    scheme, _, rest = url.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return None
    path = unquote(rest.partition("?")[0])
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def problem_of(url: str, timeout: float = CHECK_TIMEOUT_SECONDS) -> str | None:
    """Why the database at `url` cannot be used now, with what to do; None if it can be.

    Connects to a server. A SQLite file that does not exist yet is not created: its folder is
    looked at.
    """
    result: list[str | None] = []
    thread = threading.Thread(target=lambda: result.append(_connect(url)), daemon=True)
    thread.start()
    thread.join(timeout)
    return result[0] if result else f"there was no answer within {timeout:.0f} s; {_START_IT}"


_START_IT = "check the address and that the server runs"


def _connect(url: str) -> str | None:
    file = sqlite_file(url)
    if file is not None and (problem := _file_problem(file)):
        return problem
    try:
        import sqlalchemy

        address = sqlalchemy.make_url(url)
        options: dict[str, Any] = {}
        if address.get_backend_name() in {"postgresql", "mysql", "mariadb"}:
            options["connect_timeout"] = _CONNECT_TIMEOUT_SECONDS
        if file is not None and not file.exists():
            address.get_dialect()
            return None
        engine = sqlalchemy.create_engine(
            address, connect_args=options, poolclass=sqlalchemy.pool.NullPool
        )
        with engine.connect() as connection:
            if file is not None:  # SQLite reads the file with the first query only
                connection.exec_driver_sql("PRAGMA schema_version")
    except Exception as error:  # database drivers raise arbitrary exceptions
        return explain(url, error)
    return None


def _file_problem(file: Path) -> str | None:
    """What keeps SQLite from reading, creating or changing the file."""
    if file.is_dir():
        return f"{file} is a folder; give the path of a file in it"
    if not file.parent.is_dir():
        return f"the folder {file.parent} does not exist; create it, mount it or correct the path"
    if not os.access(file.parent, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        return f"{file} cannot be written; change its permissions or choose another folder"
    return None


def explain(url: str, error: BaseException) -> str:
    """What an error of SQLAlchemy, a driver, MLflow or Optuna means, with what to do.

    The sentence does not contain the address, which may hold a password.
    """
    text = " ".join(" ".join(str(link) for link in _chain(error)).split())
    if module := re.search(r"No module named '(\w+)", text):
        name = module[1]
        package = _PACKAGES.get(name, name)
        return f"the Python module `{name}` is not installed; run `pip install {package}`"
    if re.search(r"Can't load plugin: sqlalchemy|Could not parse|invalid literal", text):
        return (
            "SQLAlchemy knows no such database; use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    if re.search(r"No space left|disk is full|DiskFull|could not extend file", text):
        return "its disk is full; free some space there and run the same command again"
    file = sqlite_file(url)
    if file is not None:
        if problem := _file_problem(file):
            return problem
        if "database is locked" in text:
            return "another program has locked the file; end that program or wait for it"
        if "not a database" in text or "malformed" in text:
            return f"{file} is no SQLite database; give another file"
        return f"{_first_line(error)}; give another file"
    if re.search(r"password|authentication failed|Access denied", text, re.IGNORECASE):
        refusal = f"it refuses the user or the password ({_first_line(error)})"
        if url.startswith("postgresql"):
            return f"{refusal}; put the password in PGPASSWORD or ~/.pgpass"
        return (
            f"{refusal}; put the password in an option file, and add ?read_default_file=FILE to "
            "the address"
        )
    if "permission denied" in text:
        return f"{_first_line(error)}; grant the user the right to create tables there"
    if match := re.search(r'database "[^"]*" does not exist', text):
        return f"the server answers, but {match[0]}; create it with `createdb`"
    return f"{_first_line(error)}; {_START_IT}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and what it was raised while handling."""
    current: BaseException | None = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _first_line(error: BaseException) -> str:
    """The innermost reason as one line."""
    cause = error.__cause__ or getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    return lines[0].strip().rstrip(".;") if lines else type(cause).__name__
