"""How many trials run at the same time, and why a search could never start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from multistill.config import SearchConfig
from multistill.hardware import Resources, cores, gpus_or_default, slots
from multistill.search.storage import storage_problem


def concurrency(config: SearchConfig, nodes: Sequence[Resources]) -> int:
    """Return how many trials run at the same time; 0 if the nodes cannot hold one.

    No more than there are trials, and on a single node no more than this machine's cores
    unless `concurrent` is set: a local Ray may promise more CPUs than exist, and trials would
    only slow each other down.

    Args:
        nodes: `CPU` and `GPU` of every node.
    """
    workers = slots(nodes, {"CPU": config.cpus_per_trial, "GPU": gpus_per_trial(config, nodes)})
    trials = workers // config.workers_per_trial
    if trials and config.concurrent is None and len(nodes) == 1:
        cpus = config.cpus_per_trial * config.workers_per_trial
        trials = min(trials, max(1, math.floor(cores() / cpus)))
    return min(config.trials, trials, config.concurrent or trials)


def gpus_per_trial(config: SearchConfig, nodes: Sequence[Resources]) -> float:
    """GPUs of each worker of a trial; by default, as in training, one where there is any."""
    return gpus_or_default(config.gpus_per_trial, nodes)


def capacity_problems(config: SearchConfig, nodes: Sequence[Resources]) -> list[str]:
    """Return why no trial could ever start, one sentence each; empty if trials fit."""
    problems = []
    gpus = gpus_per_trial(config, nodes)
    if gpus > 1 and gpus % 1:
        problems.append(
            f"search.gpus_per_trial: {gpus:g} is neither a whole number nor a fraction of one GPU"
        )
    for name, requested, key in (
        ("CPU", config.cpus_per_trial, "cpus_per_trial"),
        ("GPU", gpus, "gpus_per_trial"),
    ):
        largest = max((float(node.get(name, 0.0)) for node in nodes), default=0.0)
        if requested > largest:
            problems.append(
                f"search.{key}: a trial requests {requested:g} {name}s, but the largest node has "
                f"{largest:g}; lower it or add a node that has them"
            )
    if not problems and concurrency(config.model_copy(update={"workers_per_trial": 1}), nodes) == 0:
        problems.append(
            f"search: no single node has the {config.cpus_per_trial:g} CPUs and {gpus:g} GPUs "
            "that a trial requests together; lower one of them"
        )
    if not problems and concurrency(config, nodes) == 0:
        problems.append(
            f"search.workers_per_trial: the cluster has no room for {config.workers_per_trial} "
            f"workers with {config.cpus_per_trial:g} CPUs and {gpus:g} GPUs each; lower it or add "
            "nodes"
        )
    problem = storage_problem(config.storage)
    return [*problems, problem] if problem else problems
