"""Servers for tests, each a child process on free ports of this machine."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 10.0


def free_ports(count: int) -> list[int]:
    """Return free ports below the range that the system assigns to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class MlflowServer:
    """An `mlflow server` on `folder/mlflow.db`; it can be started again after `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        [self.port] = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]

    def _environment(self) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes
        }

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self._environment()},
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"no server at {self.uri}: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Terminate the server and its workers."""
        if self._signal(signal.SIGTERM):
            assert self._process is not None
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def pause(self) -> None:
        """Stop the server and its workers with SIGSTOP: requests wait, none is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server and its workers with SIGKILL."""
        if self._signal(signal.SIGKILL):
            assert self._process is not None
            self._process.wait()

    def _signal(self, number: int) -> bool:
        """Send a signal to the process group; return False if the server is not running."""
        if self._process is None or self._process.poll() is not None:
            return False
        os.killpg(self._process.pid, number)
        return True


@contextmanager
def server_command(
    command: Sequence[str], address: str, folder: Path
) -> Iterator[Callable[[], None]]:
    """A command that serves, which starts meanwhile and is ended by SIGTERM.

    Args:
        command: of Python's `-m`.
        address: answered once it is ready.
        folder: where it runs and its output goes.

    Yields:
        a function that waits until it is ready.
    """
    log = folder / f"{command[0]}.log"
    # MLflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=stream, stderr=stream, cwd=folder,
            env={**os.environ, "PATH": path}, start_new_session=True,
        )  # fmt: skip

    def wait() -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(address, timeout=5):
                    return
            except OSError:
                time.sleep(0.3)

    try:
        yield wait
        process.terminate()
        process.wait(120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@contextmanager
def foreign_service(kind: str) -> Iterator[int]:
    """Something that is no Ray listens at the port: "silent", "web server" or "gRPC server"."""
    if kind == "gRPC server":
        import grpc

        grpc_server = grpc.server(ThreadPoolExecutor(1))
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        grpc_server.start()
        yield port
        grpc_server.stop(0)
        return
    if kind == "silent":
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            yield silent.getsockname()[1]
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
