"""What the batch script of a Slurm job runs, on the first node of the allocation.

    python -m multistill.pipeline.slurm_job JOB.yaml [OPTIONS of run] [--task OPTIONS]...

It starts a Ray cluster over the allocation, runs the job file on it, interrupts the run (SIGTERM)
when Slurm says that the time is nearly over, and puts the Slurm job back into the queue. It does so
until the job is done, fails by itself, or an attempt got nowhere.

`--task` has more options of one task of a job array; the first is of the lowest index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from multistill.cluster.ray_node import RayNode, gpus_of, own_address
from multistill.cluster.slurm import call_slurm, seconds_of
from multistill.config import JobConfig
from multistill.errors import MultistillError
from multistill.pipeline import jobfile
from multistill.pipeline.attempts import reached

SAVE = signal.SIGTERM
"""What a run is sent to save and stop; Ctrl-C's signal would do without what is between epochs."""
STEP_SECONDS = 15.0
WRONG_USE = 2
"""Exit code of a run that no other attempt would help."""


@dataclass(frozen=True)
class Allocation:
    """The nodes of this Slurm job.

    Attributes:
        names: of the nodes; the first runs the batch script.
        cpus: of the job on each node.
        gpus: of the job on all nodes together.
    """

    job_id: str
    names: list[str]
    cpus: list[int]
    gpus: int = 0

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Allocation:
        """Of the environment of a batch script.

        Raises:
            MultistillError: this is none.
        """
        if "SLURM_JOB_ID" not in variables or "SLURM_JOB_NODELIST" not in variables:
            raise MultistillError(
                "this is no Slurm job; send the batch script with `sbatch`, or use "
                "`multistill submit JOB --slurm`"
            )
        names = call_slurm("scontrol", "show", "hostnames", variables["SLURM_JOB_NODELIST"]).split()
        cpus = cpus_per_node(variables.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        return cls(variables["SLURM_JOB_ID"], names, cpus, gpus_of_job(variables, len(names)))


def cpus_per_node(text: str) -> list[int]:
    """Of Slurm's short form: `4(x2),8` is [4, 4, 8]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(cpus) for cpus, count in found for _ in range(int(count or 1))]


def gpus_of_job(variables: Mapping[str, str], nodes: int) -> int:
    """GPUs of the job on all its nodes.

    Slurm tells the total only where it was asked for one (`--gpus=5`, `--gpus=a100:4,h100`), which
    it may divide unevenly; otherwise every node has as many as this one.
    """
    if asked := variables.get("SLURM_GPUS"):
        counts = [part.rpartition(":")[2] for part in asked.split(",")]
        return sum(int(count) if count.isdecimal() else 1 for count in counts)
    return gpus_of(variables) * nodes


class SlurmJob:
    """One attempt at a job in its allocation."""

    def __init__(self, allocation: Allocation, job: JobConfig, command: Sequence[str]) -> None:
        """Args:
        command: of the run, without the address of the cluster.
        """
        self.allocation = allocation
        self.job = job
        self.command = list(command)
        self.ending: str | None = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._is_asked = False

    def run(self) -> int:
        """Returns the exit code of the batch script."""
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._end)
        before = reached(self.job)
        with ExitStack() as stack:
            token = _new_token(self.allocation.job_id)
            stack.callback(shutil.rmtree, token.parent, ignore_errors=True)
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
            head = self._start_nodes(stack)
            code = None if self.ending else self._run_driver(head)
        if code == 0:
            return 0
        # Slurm may have terminated Ray too: then an interrupted run ends with any other code.
        if code is not None and (self.ending is None or code == WRONG_USE):
            _say(f"the job failed by itself (exit code {code}), so it is not queued again")
            return code if code > 0 else 1
        return self._try_again(before)

    def _end(self, number: int, _: object) -> None:
        """Slurm's signal: interrupt the run once, since it stops at once at the second time."""
        if self.ending is not None:
            return
        self.ending = signal.Signals(number).name
        # `print` could be interrupted by itself here.
        os.write(2, f"slurm: {self.ending}: the run saves and stops\n".encode())
        self._interrupt()

    def _interrupt(self) -> None:
        if self._driver is not None and self._driver.poll() is None and not self._is_asked:
            self._is_asked = True
            self._driver.send_signal(SAVE)

    def _start_nodes(self, stack: ExitStack) -> RayNode:
        names, cpus = self.allocation.names, self.allocation.cpus
        peer = _address_of(names[1]) if len(names) > 1 else None
        head = RayNode(os.environ, None, own_address(peer), other_cpus=sum(cpus[1:]))
        stack.callback(head.stop)
        head.wait_until_up()
        others = ", ".join(names[1:])
        _say(
            f"Ray's head node is {head.address} on {names[0]}"
            f"{f', with {others}' if others else ''}; its dashboard is "
            f"http://127.0.0.1:{head.ports['dashboard-port']} there"
        )
        if others:
            workers = subprocess.Popen(
                [
                    *("srun", f"--nodes={len(names) - 1}", f"--ntasks={len(names) - 1}"),
                    *("--ntasks-per-node=1", f"--nodelist={','.join(names[1:])}", "--overlap"),
                    *("--kill-on-bad-exit=0", sys.executable, "-m"),
                    *("multistill.cluster.ray_node", head.address),
                ],
                # A task would be bound to a part of the CPUs that its node gives to the job.
                env={**os.environ, "SLURM_CPU_BIND": "none"},
                stdin=subprocess.PIPE,
            )
            stack.callback(_end_step, workers)
        return head

    def _run_driver(self, head: RayNode) -> int:
        # Every stage sizes itself by the nodes that exist when it starts.
        expected = {"CPU": sum(self.allocation.cpus), "GPU": self.allocation.gpus}
        command = [*self.command, "--set", f"resources.address={head.address}"]
        for name, count in expected.items():
            if count:
                command += ["--set", f"resources.wait_for.{name}={count}"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._driver = subprocess.Popen(command, env=environment)
        if self.ending is not None:  # between the start of the nodes and now
            self._interrupt()
        return self._driver.wait()

    def _try_again(self, before: frozenset[str]) -> int:
        job_id = self.allocation.job_id
        if self.ending == "SIGTERM" and was_cancelled(_job(job_id)):
            _say("the job was cancelled, so it is not queued again")
            return 1
        if reached(self.job) == before:
            _say(
                "nothing was finished or saved in this attempt, so the job is not queued "
                "again; raise --time, or lower --save-before, and submit it again"
            )
            return 1
        try:
            call_slurm("scontrol", "requeue", job_id)
        except MultistillError as error:
            # Slurm ends all processes of a job that it queues again, `scontrol` sometimes before
            # that has its answer.
            if getattr(error.__cause__, "returncode", None) != -signal.SIGTERM:
                _say(f"{error}; submit the job again to continue it")
                return 1
        _say("the job is queued again and will continue")
        return 0


def _say(text: str) -> None:
    """In the job's log, before Slurm kills this program."""
    print(f"slurm: {text}", flush=True)


def was_cancelled(job: Mapping[str, str]) -> bool:
    """Whether a job that was sent SIGTERM was cancelled, rather than out of time or preempted.

    Args:
        job: as `scontrol show job` says; empty: it did not answer, and the job counts as not
            cancelled.
    """
    if job.get("JobState") == "CANCELLED":
        return True
    if job.get("JobState") != "COMPLETING":  # RUNNING, PREEMPTED, TIMEOUT
        return False
    # While it ends, Slurm hides the state that it had before.
    if job.get("Reason") in {"TimeLimit", "Preempted"}:
        return False
    run, limit = seconds_of(job.get("RunTime", "")), seconds_of(job.get("TimeLimit", ""))
    return run is None or limit is None or run < limit


def _new_token(job_id: str) -> Path:
    """A token of this job's cluster in a file that this user alone can read, on every node."""
    folder = Path.home() / ".multistill" / f"slurm-{job_id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    path = folder / "ray-token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _job(job_id: str) -> dict[str, str]:
    """What `scontrol show job` says; nothing where it has no answer, so that the job goes on."""
    try:
        words = call_slurm("scontrol", "show", "job", "-o", job_id).split()
    except MultistillError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _address_of(node: str) -> str:
    match = re.search(r"\bNodeAddr=(\S+)", call_slurm("scontrol", "show", "node", "-o", node))
    return match[1] if match else node


def _end_step(workers: subprocess.Popen[bytes]) -> None:
    """Let the other nodes end; srun would kill them at once if it were terminated."""
    assert workers.stdin is not None
    workers.stdin.close()
    try:
        workers.wait(STEP_SECONDS)
    except subprocess.TimeoutExpired:
        workers.terminate()
        workers.wait()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="multistill.pipeline.slurm_job", allow_abbrev=False)
    parser.add_argument("job", metavar="JOB.yaml", type=Path)
    parser.add_argument("--task", action="append", default=[], metavar="OPTIONS")
    run = parser.add_argument_group("options of the run")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    run.add_argument("--workspace", metavar="PATH")
    run.add_argument("--until", metavar="STAGE")
    given = parser.parse_args(arguments)
    if given.task:
        number = int(os.environ["SLURM_ARRAY_TASK_ID"]) - int(os.environ["SLURM_ARRAY_TASK_MIN"])
        parser.parse_args([str(given.job), *shlex.split(given.task[number])], given)
    values = list(given.set)
    if given.workspace is not None:
        values.append(f"workspace={json.dumps(given.workspace)}")
    job = jobfile.load(given.job, values, for_cluster=True)
    allocation = Allocation.of(os.environ)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-m", "multistill", "run", str(given.job)]
    command += [part for value in values for part in ("--set", value)]
    command += [] if given.until is None else ["--until", given.until]
    started = time.monotonic()
    code = SlurmJob(allocation, job, command).run()
    _say(f"this attempt took {time.monotonic() - started:.0f} s")
    return code


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except MultistillError as error:
        print(f"multistill: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
