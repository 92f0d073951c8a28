"""Requesting nodes from an autoscaled cluster and waiting for them.

Every stage sizes itself by the existing nodes, and an idle autoscaled cluster has no worker
nodes. The open-source autoscaler does not publish the limit that it can scale to, so the job
file states the resources that the run needs, and the run waits for them before the first stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from multistill.cluster.resource_request import requested
from multistill.errors import MultistillError

POLL_SECONDS = 2.0
LOG_SECONDS = 60.0


@contextmanager
def wait_for_resources(
    required: Mapping[str, float], minutes: float, log: Callable[[str], None]
) -> Iterator[dict[str, float]]:
    """Scale the connected cluster to at least these resources for the duration of the block.

    Args:
        required: Ray's resource names and amounts, e.g. {"GPU": 4}; empty: do not scale.
        minutes: maximum time to wait.

    Yields:
        the cluster's resources.

    Raises:
        MultistillError: the resources did not become available, or the cluster has no CPU.
    """
    import ray

    with ExitStack() as stack:
        if required:  # also where they exist: they may be there for another run, and go with it
            stack.enter_context(requested(required))
        _wait(required, minutes, log)
        available = dict(ray.cluster_resources())
        if not available.get("CPU"):
            raise MultistillError(
                "the cluster has no CPUs at the moment; set the resources to wait for, e.g. "
                "--set resources.wait_for.GPU=2 (see docs/cluster.md)"
            )
        yield available


def _wait(required: Mapping[str, float], minutes: float, log: Callable[[str], None]) -> None:
    import ray

    deadline = time.monotonic() + 60 * minutes
    next_log = 0.0
    while missing := _missing(required, ray.cluster_resources()):
        now = time.monotonic()
        if now >= deadline:
            raise MultistillError(
                f"the cluster did not get {missing} within {minutes:g} minutes; check the "
                "autoscaler with `ray status` on the head node, lower resources.wait_for, or raise "
                "resources.wait_minutes"
            )
        if now >= next_log:
            log(f"waiting for the cluster to get {missing}")
            next_log = now + LOG_SECONDS
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - now)))


def _missing(required: Mapping[str, float], available: Mapping[str, float]) -> str:
    """Describe the resources that are missing; empty if there are none."""
    return ", ".join(
        f"{amount:g} {name} (has {available.get(name, 0.0):g})"
        for name, amount in required.items()
        if available.get(name, 0.0) + 1e-6 < amount
    )
