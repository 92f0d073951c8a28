"""Wall time, processor time and peak memory of a command with all processes that it starts."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
INTERVAL = 0.2
"""Seconds between samples; memory is read at every third."""
LINGER = 30.0
"""Seconds that processes which the command left behind have to end."""


@dataclass(frozen=True)
class Measured:
    """
    Attributes:
        seconds: from start to exit of the command.
        processor_seconds: of the whole tree, user and system.
        peak_mb: largest sum of the processes' proportional set sizes, in 10^6 bytes. Pages that
            several share count once.
        status: exit status of the command.
    """

    seconds: float
    processor_seconds: float
    peak_mb: float
    status: int


class _Sampler(threading.Thread):
    """Adds up what the descendants of this process have used."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.used: dict[tuple[int, float], float] = {}
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        samples = 0
        while not self._done.wait(INTERVAL):
            self.sample(memory=samples % 3 == 0)
            samples += 1

    def sample(self, memory: bool) -> None:
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self.used[process.pid, process.create_time()] = times.user + times.system
                total += process.memory_full_info().pss if memory else 0
            except psutil.Error:
                continue
        self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._done.set()
        self.join()


def measure(
    command: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    environment: Mapping[str, str],
    limit: float | None = None,
) -> Measured:
    """Run a command to its end, its output into `log`. No other child process may run meanwhile.

    Processes whose parent has ended become children of this one (a subreaper), so that those of a
    Ray cluster are counted too. Processor time is the larger of the kernel's sum over children that
    were waited for, and of samples, which see processes that nobody waited for.

    Args:
        limit: seconds after which the command is killed, which its status shows.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    sampler = _Sampler()
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        sampler.start()
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        seconds = time.perf_counter() - started
    _wait_for_orphans()
    sampler.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    used = max(waited, sum(sampler.used.values()))
    return Measured(seconds, used, sampler.peak / 1e6, status)


def _wait_for_orphans() -> None:
    """Collect the processes that the command left behind, and end those that stay."""
    deadline = time.monotonic() + LINGER
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            if time.monotonic() > deadline:
                for process in psutil.Process().children(recursive=True):
                    process.kill()
            time.sleep(0.05)
