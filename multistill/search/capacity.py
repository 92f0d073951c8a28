"""How many trials run at once, and what to say before a search that could never start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from multistill.config import SearchConfig
from multistill.hardware import Resources, cores, gpus_or_default, slots
from multistill.search.storage import storage_problem


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
    workers = slots(nodes, {"CPU": config.cpus_per_trial, "GPU": gpus})
    fits = workers // config.workers_per_trial
    return min(config.trials, fits, config.concurrent or fits)


def cores_fit(config: SearchConfig, limit: int, nodes: Sequence[Resources]) -> int:
    """`limit`, lowered to this machine's cores where it is the only node.

    A local Ray may promise more CPUs than there are; trials would only slow each other.
    """
    if len(nodes) != 1 or config.concurrent is not None:
        return limit
    each = config.cpus_per_trial * config.workers_per_trial
    return min(limit, max(1, math.floor(cores() / each)))


def gpus_per_trial(config: SearchConfig, resources: Resources | Sequence[Resources]) -> float:
    """GPUs of one trial. Without a wish, as in training: a whole one where there is any."""
    return gpus_or_default(config.gpus_per_trial, _nodes(resources))


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


def _nodes(resources: Resources | Sequence[Resources]) -> list[Resources]:
    return [resources] if isinstance(resources, Mapping) else list(resources)
