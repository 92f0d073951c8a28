"""A real Slurm on this machine with two nodes, where its programs are installed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.servers import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
INSTALL = "apt-get install slurmctld slurmd slurm-client munge"
_FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
OverTimeLimit=0
KillWait={kill_wait}
MinJobAge=600
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing_programs() -> list[str]:
    """Programs that the test needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_FOLDERS) is None]


@dataclass
class Slurm:
    """A running Slurm.

    Attributes:
        environment: for commands that talk to it.
    """

    home: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands; returns what it prints."""
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, f"{command}: {result.stderr}\n{self.logs()}"
        return result.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, by key."""
        words = self.call("scontrol", "show", "job", "-o", job_id).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen\n{self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        files = sorted(self.home.glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)


@contextmanager
def running_slurm(kill_wait: int = 10) -> Iterator[Slurm]:
    """Start munged, slurmctld and a slurmd for each of two nodes, with ports, keys and state of
    their own.

    Args:
        kill_wait: seconds between SIGTERM and SIGKILL at a job's time limit.
    """
    home = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    home.chmod(0o755)
    (home / "state").mkdir()
    key = home / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    user = "root" if os.getuid() == 0 else os.environ.get("USER", "nobody")
    config = home / "slurm.conf"
    config.write_text(
        _CONFIG.format(home=home, user=user, ports=free_ports(3), kill_wait=kill_wait)
    )
    environment = {**os.environ, "PATH": _FOLDERS, "SLURM_CONF": str(config)}
    for name in [name for name in environment if name.startswith(("SLURM_JOB", "SBATCH_"))]:
        environment.pop(name)
    slurm = Slurm(home, environment)
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (home / "start.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    try:
        start(
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={home}/munge.socket", f"--pid-file={home}/munged.pid"),
            *(f"--log-file={home}/munged.log", f"--seed-file={home}/munged.seed"),
        )
        slurm.wait((home / "munge.socket").exists, "the start of munged", 30)
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            (home / f"spool-{node}").mkdir()
            start("slurmd", "-D", "-N", node)

        def idle() -> bool:
            result = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True
            )
            return result.stdout.split() == ["idle", "idle"]

        slurm.wait(idle, "the start of Slurm", 60)
        yield slurm
    finally:
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", "--user", user],
            env=environment,
            capture_output=True,
            timeout=30,
        )
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(home, ignore_errors=True)
