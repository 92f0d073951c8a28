"""A real PostgreSQL server for a test, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.servers import free_ports


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian does not put on the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@dataclass
class Postgres:
    """A server on 127.0.0.1 with the user `ann`, her password and her database `studies`."""

    port: int
    password: str

    def url(self, database: str = "studies", user: str = "ann") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres(password: str = "geheim-77") -> Iterator[Postgres]:
    """Start the server on a free port; it asks for passwords."""
    folder = programs()
    assert folder is not None
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    prefix = []
    if os.getuid() == 0:
        shutil.chown(home, "postgres")
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    secret = home / "password"
    secret.write_text(password)
    secret.chmod(0o644)
    [port] = free_ports(1)
    server = Postgres(port, password)

    def call(program: str, *arguments: str) -> None:
        command = [*prefix, str(folder / program), *arguments]
        result = subprocess.run(
            command,
            cwd=home,
            env={**os.environ, "PGPASSWORD": password},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr

    data = str(home / "data")
    call("initdb", "-D", data, "-U", "ann", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -F"
    call("pg_ctl", "-D", data, "-w", "-t", "100", "-l", str(home / "log"), "-o", options, "start")
    try:
        connection = ["-h", "127.0.0.1", "-p", str(port), "-U", "ann"]
        call("createdb", *connection, "studies")
        yield server
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
