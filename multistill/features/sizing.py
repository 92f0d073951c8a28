"""How many workers decode and encode, and what the cluster lacks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError

SECONDS_PER_ENCODER = {"log-mel": 7200.0}
"""Audio that repays the start of one more encoder process on CPUs."""
SECONDS_PER_CPU_MODEL = 120.0

CPUS_PER_GPU_ENCODER = 1.0
DECODERS_PER_GPU = 4


@dataclass(frozen=True)
class Pools:
    """Workers of the stage.

    Attributes:
        decoders: CPU tasks at a time that decode; 0: the encoders decode themselves, since
            both would take turns on the same CPUs.
    """

    encoders: int
    cpus_per_encoder: float
    gpus_per_encoder: float
    decoders: int


def size_pools(
    config: FeaturesConfig, resources: Mapping[str, float], shards: int, seconds: float
) -> Pools:
    """Pool sizes from the job file, or worked out from what the cluster has.

    Args:
        resources: `ray.cluster_resources()`.
        shards, seconds: what is left to encode.
    Raises:
        MultistillError: the job file asks for more than the cluster has.
    """
    cpus = resources.get("CPU", 0.0)
    gpus = resources.get("GPU", 0.0)
    per_encoder = config.gpus_per_encoder
    if per_encoder is None:
        per_encoder = 1.0 if gpus >= 1 and config.speech.model != "log-mel" else 0.0
    cpus_each = CPUS_PER_GPU_ENCODER if per_encoder else 1.0
    if config.encoders is not None:
        encoders = config.encoders
    elif per_encoder:
        encoders = max(1, math.floor(gpus / per_encoder))
    else:
        repaid = SECONDS_PER_ENCODER.get(config.speech.model, SECONDS_PER_CPU_MODEL)
        free = cpus - (config.decoders or 0)
        encoders = max(1, min(math.floor(free), math.ceil(seconds / repaid)))
    encoders = min(encoders, max(1, shards))
    spare = cpus - encoders * cpus_each
    if config.decoders is not None:
        decoders = config.decoders
    else:
        decoders = max(1, min(math.floor(spare), DECODERS_PER_GPU * encoders)) if per_encoder else 0
    pools = Pools(encoders, cpus_each, per_encoder, decoders)
    missing = lacking(pools, resources)
    if missing is not None:
        raise MultistillError(
            f"features: {missing}; lower `features.encoders`, `features.gpus_per_encoder` or "
            "`features.decoders`, or give Ray more (`resources`)"
        )
    return pools


def lacking(pools: Pools, resources: Mapping[str, float]) -> str | None:
    """What the cluster lacks for these pools, in words, or None."""
    gpus = resources.get("GPU", 0.0)
    needed = pools.encoders * pools.gpus_per_encoder
    if needed > gpus:
        return (
            f"{pools.encoders} encoders with {pools.gpus_per_encoder:g} GPU each need "
            f"{needed:g} GPUs and the cluster has {gpus:g}"
        )
    # One CPU is enough for all decode tasks, only slower; without one they would never start.
    cpus = resources.get("CPU", 0.0)
    needed = pools.encoders * pools.cpus_per_encoder + min(1, pools.decoders)
    if needed > cpus:
        return (
            f"{pools.encoders} encoders and the decoders need {needed:g} CPUs and the cluster "
            f"has {cpus:g}"
        )
    return None
