"""Whether a cluster can hold a training, and how many at once. No Ray needed to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multistill.errors import MultistillError

Resources = Mapping[str, float]


def slots(nodes: Sequence[Resources], need: Resources) -> int:
    """How many workers with `need` each fit on the nodes; a worker cannot span two."""
    return sum(
        min((int(node.get(name, 0.0) / amount + 1e-9) for name, amount in need.items()), default=0)
        for node in nodes
    )


def require(name: str, workers: int, need: Resources, nodes: Sequence[Resources]) -> None:
    """Refuse what can never start, instead of waiting for it.

    Args:
        nodes: total resources of each node.
    Raises:
        MultistillError: naming the resource that is lacking.
    """
    if slots(nodes, need) >= workers:
        return

    def fitting(resource: str) -> int:
        return slots(nodes, {resource: need[resource]})

    lacking = min(need, key=fitting)
    each = " and ".join(f"{amount:g} {resource}" for resource, amount in need.items())
    total = sum(node.get(lacking, 0.0) for node in nodes)
    raise MultistillError(
        f"`{name}` asks for {workers} workers with {each} each, but the cluster has room for "
        f"{slots(nodes, need)}: {lacking} is lacking ({total:g} on {len(nodes)} nodes); lower "
        f"`train.workers` or `train.{lacking.lower()}s_per_worker`, or add nodes "
        "(a cluster that grows by itself: `resources.wait_for`)"
    )


def lanes(
    tasks: int, workers: int, need: Resources, nodes: Sequence[Resources], free: Resources
) -> int:
    """How many of `tasks` train at the same time, at least one.

    Args:
        free: resources of the whole cluster that nobody holds now.
    """
    unused = min((int(free.get(name, 0.0) / amount + 1e-9) for name, amount in need.items()))
    return max(1, min(tasks, slots(nodes, need) // workers, unused // workers))
