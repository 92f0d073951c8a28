"""Running one function as a Ray task: the driver itself computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from multistill.errors import MultistillError

T = TypeVar("T")


def on_cluster(function: Callable[..., T], *arguments: Any) -> T:
    """Run one function as a Ray task, on a GPU where the cluster has one.

    The driver may sit on a head node without CPUs to spare, so it computes nothing itself.
    """
    import ray
    from ray.exceptions import RayTaskError

    cpus, gpus = _one_node([node["Resources"] for node in ray.nodes() if node["Alive"]])
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)
    try:
        result: T = ray.get(task.remote(*arguments))
    except RayTaskError as error:
        # Ray's own error is ours and its whole traceback in one: only ours is for people.
        if isinstance(error.cause, MultistillError | OSError):
            raise error.cause from None
        raise
    return result


def _one_node(nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs that one living node can give to a task: a task never spans two."""
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    largest = max((node.get("CPU", 0) for node in with_gpu or nodes), default=1)
    return max(1, min(4, int(largest) - 1)), 1 if with_gpu else 0
