"""What this machine has, seen without importing torch or Ray."""

from __future__ import annotations

import os
import re
from pathlib import Path

MIN_LOGICAL_CPUS = 4
"""Ray Data and Ray Train deadlock on fewer: each needs a CPU while the other holds one."""


def cores() -> int:
    """Cores this process may use: affinity and the container's quota respected."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return allowed


def local_cpus() -> int:
    """Logical CPUs of a local Ray."""
    return max(MIN_LOGICAL_CPUS, cores())


def local_gpus() -> int:
    """NVIDIA GPUs that CUDA would show to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        end = next((i for i, n in enumerate(names) if n in {"", "-1", "NoDevFiles"}), len(names))
        return end
    try:
        return sum(1 for d in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", d.name))
    except OSError:
        return 0
