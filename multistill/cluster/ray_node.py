"""One node of a Ray cluster that belongs to one Slurm job, beside other users' jobs.

`python -m multistill.cluster.ray_node HOST:PORT` adds this machine to the cluster at that address,
until its standard input ends, as that of all tasks of `srun` does with the program that started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from multistill.cluster.scratch import scratch_folder, scratch_problem
from multistill.errors import MultistillError
from multistill.hardware import MIN_LOGICAL_CPUS

START_SECONDS = 180.0
STOP_SECONDS = 3.0
"""From SIGTERM to SIGKILL; Slurm itself kills what is left after `KillWait` (30 s by default)."""

FIRST_PORT, LAST_PORT = 20_000, 31_999
"""Below the ports that Linux assigns to outgoing connections (32768 and above)."""
PORT_OPTIONS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
HEAD_PORT_OPTIONS = ("port", "dashboard-port", "ray-client-server-port")
"""All other ports of Ray are the system's choice."""
_BLOCK = 8
_NUM_BLOCKS = (LAST_PORT + 1 - FIRST_PORT) // _BLOCK


def job_ports(job_id: int, names: tuple[str, ...]) -> dict[str, int]:
    """Free ports of this machine for a job: those of its id, else the next block.

    Jobs whose ids differ by less than 1500 start from different blocks, so jobs that start at the
    same moment on one machine do not look at the same ports.

    Raises:
        MultistillError: none is free.
    """
    for offset in range(_NUM_BLOCKS):
        first = FIRST_PORT + (job_id + offset) % _NUM_BLOCKS * _BLOCK
        ports = range(first, first + len(names))
        if all(_is_free(port) for port in ports):
            return dict(zip(names, ports, strict=True))
    raise MultistillError(
        f"no ports from {FIRST_PORT} to {LAST_PORT} are free on {socket.gethostname()}"
    )


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def own_address(peer: str | None) -> str:
    """The address of this machine on the network that leads to another one.

    A machine with several networks has several addresses, and its name may stand for one that the
    other cannot reach, or for 127.0.1.1; the route that the system would take is right.

    Args:
        peer: name or address of the other machine; None: there is none.

    Raises:
        MultistillError: the name cannot be resolved, or nothing leads there.
    """
    if peer is None:
        return "127.0.0.1"
    try:
        family, kind, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with closing(socket.socket(family, kind)) as probe:
            probe.connect(address)  # of a datagram socket: sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise MultistillError(f"the node `{peer}` cannot be reached: {error}") from error


def private_folder(path: Path) -> Path:
    """Make an empty folder that no one else can enter, in place of one of an earlier attempt.

    Raises:
        MultistillError: someone else owns what is there.
    """
    try:
        if path.lstat().st_uid != os.getuid():
            raise MultistillError(
                f"{path} belongs to another user; set RAY_TMPDIR to a folder of your own on every "
                "node, with a short path"
            )
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    path.mkdir(mode=0o700, parents=True)
    return path


class RayNode:
    """Ray on this machine.

    Attributes:
        ip: of this machine, for the other nodes.
        ports: by option of `ray start`.
        folder: of sockets, logs and spilled objects; removed by `stop`.
    """

    def __init__(
        self, variables: Mapping[str, str], head: str | None, ip: str, other_cpus: int = 0
    ) -> None:
        """Args:
        variables: of the environment, as Slurm sets them in a job's step on this machine.
        head: `host:port` of the head node; None: this becomes the head node.
        other_cpus: of the other nodes of a head node.
        """
        job_id = variables["SLURM_JOB_ID"]
        self.ip = ip
        names = PORT_OPTIONS if head else (*HEAD_PORT_OPTIONS, *PORT_OPTIONS)
        self.ports = job_ports(int(job_id), names)
        # Nodes may be one machine: the head's folder is none of those of the tasks of `srun`.
        suffix = f"-{variables['SLURM_PROCID']}" if head else ""
        folder = scratch_folder() / f"ms-{job_id}{suffix}"
        if problem := scratch_problem(folder):
            raise MultistillError("; ".join(problem))
        self.folder = private_folder(folder)
        cpus = int(variables.get("SLURM_CPUS_ON_NODE", "1"))
        if head is None:
            cpus = max(cpus, MIN_LOGICAL_CPUS - other_cpus)
        self._log = self.folder / "start.log"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *((f"--address={head}",) if head else ("--head", "--dashboard-host=127.0.0.1")),
            *(f"--node-ip-address={ip}", f"--temp-dir={self.folder / 'ray'}"),
            *(f"--num-cpus={cpus}", f"--num-gpus={gpus_of(variables)}"),
            *(f"--{name}={port}" for name, port in self.ports.items()),
            *store_options(variables),
            "--disable-usage-stats",
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )

    @property
    def address(self) -> str:
        """Of a head node, `host:port`."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{host}:{self.ports['port']}"

    def wait_until_up(self) -> None:
        """Raises:
        MultistillError: Ray ended, or does not start in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self.log():
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = " ".join(self.log().split())[-600:]
                raise MultistillError(f"Ray does not start on {socket.gethostname()}: {last}")
            time.sleep(0.5)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End Ray's processes, and no others of this user, and remove the folder."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                try:
                    os.killpg(self.process.pid, number)
                    self.process.wait(STOP_SECONDS)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        deadline = time.monotonic() + STOP_SECONDS
        while self.folder.exists() and time.monotonic() < deadline:  # Ray's daemons end after it
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.1)


def gpus_of(variables: Mapping[str, str]) -> int:
    """GPUs of the job on this machine; Ray alone would count all that the machine has."""
    if count := variables.get("SLURM_GPUS_ON_NODE"):
        return int(count)
    visible = variables.get("CUDA_VISIBLE_DEVICES", "")
    return 0 if visible == "NoDevFiles" else len([name for name in visible.split(",") if name])


def store_options(variables: Mapping[str, str]) -> list[str]:
    """Memory of the object store, as Ray's own share of it, but of the job's memory."""
    memory = int(variables.get("SLURM_MEM_PER_NODE", "0"))  # MB; 0: all that the node has
    return [f"--object-store-memory={int(memory * 0.3) * 2**20}"] if memory else []


def main(head: str) -> None:
    """Be a node of the cluster until told to end; exits with Ray's code."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def wait_for_the_end() -> None:
        while sys.stdin.buffer.read(1024):
            pass
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    node = RayNode(os.environ, head, own_address(head.rpartition(":")[0].strip("[]")))
    try:
        node.wait_until_up()
        print(f"ray node {node.ip} on {socket.gethostname()}: up", flush=True)
        while node.process.poll() is None and not ended.wait(0.5):
            pass
    finally:
        node.stop()
    raise SystemExit(0 if ended.is_set() else node.process.returncode)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except MultistillError as error:
        raise SystemExit(f"multistill: {error}") from None
