"""A real Ray head node with token authentication, in its own process group."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.servers import free_ports


@dataclass
class Head:
    """A running head node.

    Attributes:
        address: of its job server, an http URL.
        gcs: `host:port` for drivers.
        environment: for processes that connect to it.
    """

    address: str
    gcs: str
    token: str
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str]


@contextmanager
def running_head(
    cpus: int = 2,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[Head]:
    """`ray start --head` on free ports; at the end only its own processes are killed.

    Args:
        options: more options of `ray start`.
        variables: more environment variables of the head node.
        port: of the head node for drivers; default: a free one.
    """
    for _ in range(3):
        home = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
        head = _start_head(home, [f"--num-cpus={cpus}", *options], variables or {}, port)
        try:
            if _wait_until_up(head):
                yield head
                return
        finally:
            _kill(head.process, home)
    raise AssertionError("the head node did not start in three attempts")


def _start_head(
    home: Path, options: Sequence[str], variables: Mapping[str, str], port: int | None
) -> Head:
    ports = [port, *free_ports(5)] if port else free_ports(6)
    token = secrets.token_hex(32)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *(f"--port={ports[0]}", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}"),
        *(f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}"),
        *(f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}"),
        *("--num-gpus=0", "--object-store-memory=100000000"),
        *("--node-ip-address=127.0.0.1", f"--temp-dir={home}", *options),
    ]
    log = home / "start.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env={**environment, **variables},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    gcs = f"127.0.0.1:{ports[0]}"
    return Head(f"http://127.0.0.1:{ports[1]}", gcs, token, process, log, environment)


def _wait_until_up(head: Head) -> bool:
    """Wait for the head node; on a busy machine Ray can time out and exit during its start."""
    request = urllib.request.Request(
        f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and head.process.poll() is None:
        # The job server answers before the node is up; only the log shows when it is.
        if "Ray runtime started" in head.log.read_text():
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return True
            except OSError:
                pass
        time.sleep(0.5)
    return False


def _kill(process: subprocess.Popen[bytes], home: Path) -> None:
    """Kill the process group of the head node and every process that uses its temporary folder."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for entry in Path("/proc").iterdir():  # Ray's daemons leave the group
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(home).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
    shutil.rmtree(home, ignore_errors=True)
