"""What this machine and a cluster's nodes can run: cores, GPUs, slots. No torch, no Ray.

One answer for all: everything that sizes a pool, a worker group or a search asks here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIN_LOGICAL_CPUS = 4
"""Ray Data and Ray Train deadlock on fewer: each needs a CPU while the other holds one."""

Resources = Mapping[str, float]
"""Ray's resource names and amounts: of a node, or of what a worker asks for."""

_ROUNDING = 1e-9
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def cores() -> int:
    """Cores this process may use: affinity and the container's quota respected, at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, round(quota)))


def _quota() -> float | None:
    """Cores of time that the container may spend, e.g. 1.5; None without a limit."""
    try:
        quota, period = _CGROUP_V2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text()
        period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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


def default_device() -> torch.device:
    """The GPU that torch would use, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus_or_default(requested: float | None, nodes: Sequence[Resources]) -> float:
    """GPUs of one worker: as requested, else a whole one where the cluster has any."""
    if requested is not None:
        return float(requested)
    return 1.0 if any(node.get("GPU", 0.0) >= 1.0 for node in nodes) else 0.0


def slots(nodes: Sequence[Resources], need: Resources) -> int:
    """How many workers that need `need` each can run on the nodes at the same time.

    A worker runs on one node, so the halves of two nodes do not add up; and a share of a GPU
    lies on one GPU, so workers of 0.4 GPU fit twice on each, not five times on two.

    Examples:
        >>> slots([{"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 0.4})
        4
    """
    asked = {name: amount for name, amount in need.items() if amount > 0}
    return sum(
        min((_fits(name, node.get(name, 0.0), amount) for name, amount in asked.items()), default=0)
        for node in nodes
    )


def _fits(name: str, available: float, amount: float) -> int:
    if name == "GPU" and amount < 1.0:
        whole, rest = divmod(available, 1.0)
        return int(whole) * math.floor(1.0 / amount + _ROUNDING) + math.floor(
            rest / amount + _ROUNDING
        )
    return math.floor(available / amount + _ROUNDING)
