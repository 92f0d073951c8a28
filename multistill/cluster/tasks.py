"""Running the driver's own computations as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from multistill.cluster.nodes import alive_nodes
from multistill.errors import MultistillError

T = TypeVar("T")


def on_cluster(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function as a Ray task, on a GPU if the cluster has one.

    The driver may run on a head node that has no CPUs to spare, so it computes nothing itself.
    """
    import ray
    from ray.exceptions import RayTaskError

    cpus, gpus = _task_resources(alive_nodes())
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)
    try:
        result: T = ray.get(task.remote(*arguments))
    except RayTaskError as error:
        # RayTaskError's message includes the remote traceback; the cause alone is readable.
        if isinstance(error.cause, MultistillError | OSError):
            raise error.cause from None
        raise
    return result


def _task_resources(nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """Return CPUs and GPUs to request for a task, which must fit on a single node."""
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    largest = max((node.get("CPU", 0) for node in with_gpu or nodes), default=1)
    return max(1, min(4, int(largest) - 1)), 1 if with_gpu else 0
