"""The team's MLflow server as `deploy/mlflow/README.md` sets it up, with its own commands."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import ROOT
from helpers.postgres import Postgres
from helpers.servers import MlflowServer

FOLDER = ROOT / "deploy" / "mlflow"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def commands(name: str) -> str:
    """The block of commands that the README names in a comment at its head."""
    [block] = re.findall(rf"^```bash\n# {name}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(block)


def python_block() -> str:
    [block] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(block)


class TeamServer(MlflowServer):
    """An `mlflow server` on PostgreSQL with logins, by the README's commands and the unit's line.

    Args:
        folder: gets the two folders, `etc` and `data`.
        postgres: running.
    """

    def __init__(self, folder: Path, postgres: Postgres, workers: int = 1) -> None:
        super().__init__(folder)
        self.postgres, self._workers = postgres, workers
        self.etc, self.data = folder / "etc", folder / "data"
        for path in (self.etc, self.data):
            path.mkdir()
        self.run("setup")

    def run(self, name: str, programs: Path | None = None, **variables: str) -> None:
        """Run a block of the README as the user who created the database.

        Args:
            programs: a folder whose programs are found first.
            variables: of the environment.
        """
        environment = {
            **self.postgres.environment,
            "ETC": str(self.etc),
            "DATA": str(self.data),
            **variables,
        }
        folders = [*([programs] if programs else []), Path(sys.executable).parent]
        environment["PATH"] = ":".join([*map(str, folders), environment["PATH"]])
        result = subprocess.run(
            ["bash", "-euc", commands(name)],
            cwd=FOLDER,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"

    @property
    def settings(self) -> dict[str, str]:
        lines = (self.etc / "server.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def admin(self) -> Mapping[str, str]:
        """Environment of a client of the administrator."""
        return self.login("admin", self.settings["MLFLOW_AUTH_ADMIN_PASSWORD"])

    @staticmethod
    def login(name: str, password: str) -> Mapping[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}

    def _command(self) -> list[str]:
        unit = (FOLDER / "multistill-mlflow.service").read_text(encoding="utf-8")
        [line] = re.findall(r"^ExecStart=\S+/bin/mlflow (.*)$", unit, re.MULTILINE)
        options = line.replace("--port=5000", f"--port={self.port}")
        options = re.sub(r"--workers=\d+", f"--workers={self._workers}", options)
        return [sys.executable, "-m", "mlflow", *shlex.split(options)]

    def _environment(self) -> dict[str, str]:
        hosts = self.settings["MLFLOW_SERVER_ALLOWED_HOSTS"].replace(":5000", f":{self.port}")
        return {**self.settings, "MLFLOW_SERVER_ALLOWED_HOSTS": hosts}

    def memory_peak(self) -> int:
        """The largest memory of any of the server's processes so far, in bytes."""
        peaks = [0]
        for process in self._processes():
            status = Path(f"/proc/{process}/status").read_text()
            peaks += [int(kb) * 1024 for kb in re.findall(r"VmHWM:\s+(\d+) kB", status)]
        return max(peaks)

    def _processes(self) -> list[int]:
        """Ids of the server's processes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == self.pid:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    @contextmanager
    def without_room(self, largest: int) -> Iterator[None]:
        """The server can write no file of more than `largest` bytes."""
        for process in self._processes():
            _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (largest, hard))
        try:
            yield
        finally:
            for process in self._processes():
                _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
                resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))
