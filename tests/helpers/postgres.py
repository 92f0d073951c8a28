"""A real PostgreSQL server for a test, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.servers import free_ports


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian does not put on the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """A server on 127.0.0.1 with the user `ann`, who may do everything, her password and `studies`.

    It can be started again after `stop`, with all that was committed.
    """

    def __init__(self, home: Path, password: str) -> None:
        folder = programs()
        assert folder is not None
        self.programs, self.password = folder, password
        [self.port] = free_ports(1)
        self._home, self._data = home, str(home / "data")
        self._running = False
        # PostgreSQL refuses to run as root.
        self._prefix = []
        if os.getuid() == 0:
            shutil.chown(home, "postgres")
            self._prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        secret = home / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        options = ["-U", "ann", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"]
        self._call("initdb", "-D", self._data, *options)

    def url(self, database: str = "studies", user: str = "ann") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    @property
    def environment(self) -> dict[str, str]:
        """What `psql` and the other clients read."""
        path = f"{self.programs}:{os.environ['PATH']}"
        connection = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "ann"}
        return {**os.environ, "PATH": path, **connection, "PGPASSWORD": self.password}

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=200 "
            f"-c unix_socket_directories={self._home} -F"
        )
        log = str(self._home / "log")
        self._call(
            *("pg_ctl", "-D", self._data, "-w", "-t", "100", "-l", log, "-o", options, "start")
        )
        self._running = True

    def stop(self) -> None:
        """Stop at once, as a crash does; clients lose their connections."""
        if self._running:
            self._call("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")
            self._running = False

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Writes are refused, as services do it whose disk is full, and after a switch-over."""
        setting = "ALTER SYSTEM SET default_transaction_read_only"
        self.query(f"{setting} = on", "postgres")
        self.query("SELECT pg_reload_conf()", "postgres")
        try:
            yield
        finally:
            self.query(f"{setting} = off", "postgres")
            self.query("SELECT pg_reload_conf()", "postgres")

    def query(self, sql: str, database: str = "studies") -> str:
        """What `psql` prints of a query, without headings."""
        return self._call("psql", "-X", "-A", "-t", "-q", "-d", database, "-c", sql).strip()

    def _call(self, program: str, *arguments: str) -> str:
        with (self._home / "output").open("w+") as output:  # a pipe would be the server's as well
            result = subprocess.run(
                [*self._prefix, str(self.programs / program), *arguments],
                cwd=self._home,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=120,
            )
            output.seek(0)
            text = output.read()
        assert result.returncode == 0, text
        return text


@contextmanager
def running_postgres(password: str = "geheim-77") -> Iterator[Postgres]:
    """Start a server on a free port; it asks for passwords."""
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    server = Postgres(home, password)
    server.start()
    try:
        server.query("CREATE DATABASE studies", "postgres")
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
