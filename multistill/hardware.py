"""Cores, GPUs and worker slots of this machine and of a cluster's nodes. No torch, no Ray.

Everything that sizes a pool, a worker group or a search uses these functions.
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
"""Ray Data and Ray Train deadlock with fewer: each needs a CPU while the other holds one."""

THREAD_LIMIT = "MULTISTILL_THREAD_LIMIT"
"""Variable that passes the user's OMP_NUM_THREADS on to all processes of a run. The variable itself
cannot say it: Ray sets it in its own workers, and so in the driver of a submitted job."""

Resources = Mapping[str, float]
"""Ray resource names and amounts: those of a node, or those that a worker requests."""

_ROUNDING = 1e-9
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def cores() -> int:
    """Cores that this process can use, limited by affinity and container quota; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, round(quota)))


def _quota() -> float | None:
    """CPU quota of the container in cores, e.g. 1.5; None without a limit."""
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


def requested_thread_limit() -> int | None:
    """The user's OMP_NUM_THREADS; of a list (nested levels, "4,2") the first. None if unset."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else None


def limit_threads(threads: int) -> int:
    """That many threads for a worker, but at most the user's limit for this run."""
    limit = os.environ.get(THREAD_LIMIT)
    return min(threads, int(limit)) if limit else threads


def local_cpus() -> int:
    """Number of logical CPUs for a local Ray cluster."""
    return max(MIN_LOGICAL_CPUS, cores())


def local_gpus() -> int:
    """Number of NVIDIA GPUs that CUDA makes visible to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores everything after the first invalid entry.
        return next((i for i, n in enumerate(names) if n in {"", "-1", "NoDevFiles"}), len(names))
    try:
        return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in Path("/dev").iterdir())
    except OSError:
        return 0


def default_device() -> torch.device:
    """The current CUDA device if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus_or_default(requested: float | None, nodes: Sequence[Resources]) -> float:
    """GPUs per worker: as requested, by default one if any node has a GPU, else none."""
    if requested is not None:
        return float(requested)
    return 1.0 if any(node.get("GPU", 0.0) >= 1.0 for node in nodes) else 0.0


def slots(nodes: Sequence[Resources], per_worker: Resources) -> int:
    """Number of workers with these requirements that can run on the nodes at the same time.

    A worker runs on a single node, so free resources of two nodes do not add up. A fraction of a
    GPU is taken from a single GPU, so two GPUs hold four workers of 0.4 GPU each, not five.

    Examples:
        >>> slots([{"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 0.4})
        4
    """
    required = {name: amount for name, amount in per_worker.items() if amount > 0}
    return sum(
        min(
            (_fits(name, node.get(name, 0.0), amount) for name, amount in required.items()),
            default=0,
        )
        for node in nodes
    )


def _fits(name: str, available: float, amount: float) -> int:
    if name == "GPU" and amount < 1.0:
        whole, rest = divmod(available, 1.0)
        return int(whole) * math.floor(1.0 / amount + _ROUNDING) + math.floor(
            rest / amount + _ROUNDING
        )
    return math.floor(available / amount + _ROUNDING)
