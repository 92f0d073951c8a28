"""How many trainings a cluster can run at the same time, and whether it can run one. No Ray."""

from __future__ import annotations

from collections.abc import Sequence

from multistill.errors import MultistillError
from multistill.hardware import Resources, slots

MAX_SPARE_THREADS = 4
"""Small heads do not get faster with more threads; for others, raise `cpus_per_worker`."""


def require(name: str, workers: int, need: Resources, nodes: Sequence[Resources]) -> None:
    """Refuse a training that can never start, instead of waiting for resources.

    Args:
        need: resources of each worker.
        nodes: total resources of each node.

    Raises:
        MultistillError: names the scarcest resource.
    """
    if slots(nodes, need) >= workers:
        return

    def available_slots(resource: str) -> int:
        return slots(nodes, {resource: need[resource]})

    scarce = min(need, key=available_slots)
    each = " and ".join(f"{amount:g} {resource}" for resource, amount in need.items())
    total = sum(node.get(scarce, 0.0) for node in nodes)
    raise MultistillError(
        f"`{name}` requests {workers} workers with {each} each, but the cluster has room for "
        f"{slots(nodes, need)}: too little {scarce} ({total:g} on {len(nodes)} nodes); "
        f"lower `train.workers` or `train.{scarce.lower()}s_per_worker`, or add nodes "
        "(for an autoscaling cluster, set `resources.wait_for`)"
    )


def concurrent_tasks(
    tasks: int, workers: int, need: Resources, nodes: Sequence[Resources], free: Resources
) -> int:
    """Number of the `tasks` that can train at the same time, at least one.

    Args:
        workers: workers of each task; need: resources of each worker.
        free: unused resources of the whole cluster.
    """
    return max(1, min(tasks, slots(nodes, need) // workers, slots([free], need) // workers))


def single_node_layout(cores: int, groups: int, workers: int) -> tuple[int, int]:
    """Concurrent tasks (at most `groups`) and threads per worker on a cluster of one node.

    A local Ray may declare more CPUs than there are cores, and cores that no worker has reserved
    would be idle.
    """
    groups = max(1, min(groups, cores // workers))
    return groups, max(1, min(MAX_SPARE_THREADS, cores // (groups * workers)))
