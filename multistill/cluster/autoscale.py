"""Asking a cluster that adds nodes by itself for nodes, and waiting for them.

Every stage sizes itself by the nodes there are, and an autoscaled cluster at rest has none
for work. Ray publishes no limit that its autoscaler would grow to, so the job says what
it wants and gets it before the first stage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from multistill.errors import MultistillError

LOOK_SECONDS = 2.0
SAY_SECONDS = 60.0


@contextmanager
def wait_for_resources(
    wanted: Mapping[str, float], minutes: float, log: Callable[[str], None]
) -> Iterator[dict[str, float]]:
    """The connected cluster with at least these resources, for the time of the block.

    Args:
        wanted: Ray's resource names and amounts, e.g. {"GPU": 4}; empty: as it is.
        minutes: to wait for at most.

    Raises:
        MultistillError: they did not come, or the cluster has no CPU for any work.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    missing = _missing(wanted, ray.cluster_resources())
    if missing:
        bundles = [{n: 1.0} for n, amount in wanted.items() for _ in range(math.ceil(amount))]
        request_resources(bundles=bundles)
    try:
        _wait(wanted, minutes, log)
        found = dict(ray.cluster_resources())
        if not found.get("CPU"):
            raise MultistillError(
                "the cluster has no CPU for work now; say how much it shall grow to, e.g. "
                "--set resources.wait_for.GPU=2 (see docs/cluster.md)"
            )
        yield found
    finally:
        if missing and ray.is_initialized():
            request_resources(bundles=[])  # nodes that idle may end


def _wait(wanted: Mapping[str, float], minutes: float, log: Callable[[str], None]) -> None:
    import ray

    end = time.monotonic() + 60 * minutes
    next_word = 0.0
    while missing := _missing(wanted, ray.cluster_resources()):
        now = time.monotonic()
        if now >= end:
            raise MultistillError(
                f"the cluster did not get {missing} within {minutes:g} minutes; see the "
                "autoscaler with `ray status` on its head, lower resources.wait_for, or raise "
                "resources.wait_minutes"
            )
        if now >= next_word:
            log(f"waiting for the cluster to get {missing}")
            next_word = now + SAY_SECONDS
        time.sleep(min(LOOK_SECONDS, max(0.0, end - now)))


def _missing(wanted: Mapping[str, float], found: Mapping[str, float]) -> str:
    """What is wanted and not there, in words; empty if all is."""
    return ", ".join(
        f"{amount:g} {name} (has {found.get(name, 0.0):g})"
        for name, amount in wanted.items()
        if found.get(name, 0.0) + 1e-6 < amount
    )
