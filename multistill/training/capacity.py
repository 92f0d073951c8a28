"""Whether a cluster can hold a training, and how many at once. Needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from multistill.errors import MultistillError
from multistill.hardware import Resources, slots


def require(name: str, workers: int, need: Resources, nodes: Sequence[Resources]) -> None:
    """Refuse what can never start, instead of waiting for it.

    Args:
        nodes: total resources of each node.
    Raises:
        MultistillError: naming the resource that is short.
    """
    if slots(nodes, need) >= workers:
        return

    def fitting(resource: str) -> int:
        return slots(nodes, {resource: need[resource]})

    short = min(need, key=fitting)
    each = " and ".join(f"{amount:g} {resource}" for resource, amount in need.items())
    total = sum(node.get(short, 0.0) for node in nodes)
    raise MultistillError(
        f"`{name}` asks for {workers} workers with {each} each, but the cluster has room for "
        f"{slots(nodes, need)}: there is too little {short} ({total:g} on {len(nodes)} nodes); "
        f"lower `train.workers` or `train.{short.lower()}s_per_worker`, or add nodes "
        "(a cluster that scales by itself: `resources.wait_for`)"
    )


def lanes(
    tasks: int, workers: int, need: Resources, nodes: Sequence[Resources], free: Resources
) -> int:
    """How many of `tasks` train at the same time, at least one.

    Args:
        free: resources of the whole cluster that are not in use.
    """
    return max(1, min(tasks, slots(nodes, need) // workers, slots([free], need) // workers))
