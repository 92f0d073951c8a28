"""How many trials run at once, and what to say before a search that could never start."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from multistill.config import SearchConfig
from multistill.search.storage import storage_problem

Resources = Mapping[str, float]


def concurrency(config: SearchConfig, resources: Resources | Sequence[Resources]) -> int:
    """Trials at a time: what fits node by node, but no more than there are trials.

    A worker of a trial runs on one node, so halves of two nodes do not add up.

    Args:
        resources: `CPU` and `GPU` of every node; one mapping stands for one node.
    Returns:
        0 if no node can hold a trial.
    """
    nodes = _nodes(resources)
    gpus = gpus_per_trial(config, nodes)
    workers = sum(_fits(config.cpus_per_trial, gpus, node) for node in nodes)
    fits = workers // config.workers_per_trial
    return min(config.trials, fits, config.concurrent or fits)


def cores_fit(config: SearchConfig, limit: int, nodes: Sequence[Resources]) -> int:
    """`limit`, lowered to this machine's cores where it is the only node.

    A local Ray may promise more CPUs than there are; trials would only slow each other.
    """
    if len(nodes) != 1 or config.concurrent is not None:
        return limit
    cores = len(os.sched_getaffinity(0))
    each = config.cpus_per_trial * config.workers_per_trial
    return min(limit, max(1, math.floor(cores / each)))


def gpus_per_trial(config: SearchConfig, resources: Resources | Sequence[Resources]) -> float:
    """GPUs of one trial. Without a wish, as in training: a whole one where there is any."""
    if config.gpus_per_trial is not None:
        return config.gpus_per_trial
    return 1.0 if any(node.get("GPU", 0.0) >= 1 for node in _nodes(resources)) else 0.0


def capacity_problems(
    config: SearchConfig, resources: Resources | Sequence[Resources]
) -> list[str]:
    """Why no trial could ever start, one sentence each; empty if trials fit."""
    nodes, found = _nodes(resources), []
    gpus = gpus_per_trial(config, nodes)
    if gpus > 1 and gpus % 1:
        found.append(
            f"search.gpus_per_trial: {gpus:g} is neither a whole number nor a share of one GPU"
        )
    for name, wanted, key in (
        ("CPU", config.cpus_per_trial, "cpus_per_trial"),
        ("GPU", gpus, "gpus_per_trial"),
    ):
        most = max((float(node.get(name, 0.0)) for node in nodes), default=0.0)
        if wanted > most:
            found.append(
                f"search.{key}: a trial asks for {wanted:g} {name}s, but the largest node has "
                f"{most:g}; lower it or add a node that has them"
            )
    if not found and concurrency(config.model_copy(update={"workers_per_trial": 1}), nodes) == 0:
        found.append(
            f"search: no single node has the {config.cpus_per_trial:g} CPUs and {gpus:g} GPUs "
            "that a trial asks for together; lower one of them"
        )
    if not found and concurrency(config, nodes) == 0:
        found.append(
            f"search.workers_per_trial: the cluster has no room for {config.workers_per_trial} "
            f"workers with {config.cpus_per_trial:g} CPUs and {gpus:g} GPUs each; lower it or add "
            "nodes"
        )
    problem = storage_problem(config.storage)
    return [*found, problem] if problem else found


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of every living node of the connected Ray cluster.

    Where an autoscaler adds nodes, what it may grow to counts, as if it were one node:
    the nodes of a rested cluster say nothing about it.
    """
    import ray

    limit = ray._private.state.state.get_max_resources_from_cluster_config()
    if limit:
        return [dict(limit)]
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _fits(cpus: float, gpus: float, node: Resources) -> int:
    fits = math.floor(float(node.get("CPU", 0.0)) / cpus + 1e-9)
    if gpus:
        # A trial's share lies on one GPU: three of 0.4 need two GPUs.
        per_gpu = math.floor(1 / gpus + 1e-9) if gpus <= 1 else 1 / gpus
        fits = min(fits, math.floor(float(node.get("GPU", 0.0)) * per_gpu + 1e-9))
    return fits


def _nodes(resources: Resources | Sequence[Resources]) -> list[Resources]:
    return [resources] if isinstance(resources, Mapping) else list(resources)
