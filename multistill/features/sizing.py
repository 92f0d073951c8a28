"""Sizes of the decode and encode worker pools, checked against the cluster's resources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from multistill.config import FeaturesConfig
from multistill.encoders.trained_layers import stored_kind
from multistill.errors import MultistillError

CPU_ENCODERS = {"log-mel": 7200.0, "waves": 7200.0}
"""Encoders that get no GPU, with the audio seconds that justify one more process; `waves` are kept
for encoders that are trained."""
SECONDS_PER_PROCESS = 120.0
"""The same for other encoders on CPUs: seconds of audio that repay a process's start."""

CPUS_PER_ENCODER = 1.0
DECODERS_PER_GPU = 4


@dataclass(frozen=True)
class Pools:
    """Workers of the features stage.

    Attributes:
        decoders: concurrent decode tasks of one CPU each; 0 if the encoders decode, as they do
            on CPUs, where both would compete for the same cores.
    """

    encoders: int
    cpus_per_encoder: float
    gpus_per_encoder: float
    decoders: int


def size_pools(
    config: FeaturesConfig, resources: Mapping[str, float], shards: int, seconds: float
) -> Pools:
    """Pool sizes from the job file, by default derived from the cluster's resources.

    Args:
        resources: `ray.cluster_resources()`.
        shards: number of shards that are still to be encoded.
        seconds: audio in these shards.

    Raises:
        MultistillError: the job file requests more than the cluster has.
    """
    cpus = resources.get("CPU", 0.0)
    gpus = resources.get("GPU", 0.0)
    gpus_each = config.gpus_per_encoder
    if gpus_each is None:
        gpus_each = 1.0 if gpus >= 1 and _seconds_per_process(config) is None else 0.0
    if config.encoders is not None:
        encoders = config.encoders
    elif gpus_each:
        encoders = max(1, math.floor(gpus / gpus_each))
    else:
        per_process = _seconds_per_process(config) or SECONDS_PER_PROCESS
        free = cpus - (config.decoders or 0)
        encoders = max(1, min(math.floor(free), math.ceil(seconds / per_process)))
    encoders = min(encoders, max(1, shards))
    if config.decoders is not None:
        decoders = config.decoders
    elif gpus_each:
        free = cpus - encoders * CPUS_PER_ENCODER
        decoders = max(1, min(math.floor(free), DECODERS_PER_GPU * encoders))
    else:
        decoders = 0
    pools = Pools(encoders, CPUS_PER_ENCODER, gpus_each, decoders)
    shortage = find_shortage(pools, resources)
    if shortage is not None:
        raise MultistillError(
            f"features: {shortage}; lower `features.encoders`, `features.gpus_per_encoder` or "
            "`features.decoders`, or give Ray more (`resources`)"
        )
    return pools


def _seconds_per_process(config: FeaturesConfig) -> float | None:
    """Of `CPU_ENCODERS`; None if an encoder gets a GPU."""
    kept = stored_kind(config.speech)
    names = [part.model for part in config.speech.parts] if kept == "states" else [kept]
    seconds = [CPU_ENCODERS[name] for name in names if name in CPU_ENCODERS]
    return min(seconds) if len(seconds) == len(names) else None


def find_shortage(pools: Pools, resources: Mapping[str, float]) -> str | None:
    """Which resource the cluster has too little of for these pools, as text; None if enough."""
    gpus = resources.get("GPU", 0.0)
    needed = pools.encoders * pools.gpus_per_encoder
    if needed > gpus:
        return (
            f"{pools.encoders} encoders with {pools.gpus_per_encoder:g} GPU each need "
            f"{needed:g} GPUs and the cluster has {gpus:g}"
        )
    # With a single CPU the decode tasks run one by one; without any they would never start.
    cpus = resources.get("CPU", 0.0)
    needed = pools.encoders * pools.cpus_per_encoder + min(1, pools.decoders)
    if needed > cpus:
        return (
            f"{pools.encoders} encoders and the decoders need {needed:g} CPUs and the cluster "
            f"has {cpus:g}"
        )
    return None
