"""A request for nodes that the autoscaler forgets when the run that made it is gone.

Ray has one request for the whole cluster, which each caller replaces and which stays until
somebody withdraws it. A driver that is killed would keep its nodes for ever, and the end of one
run would withdraw the nodes of another. So one actor, which outlives the runs, requests what is
enough for every living run:

    driver -- owns --> `_Lease`, an actor that dies with the driver's job, however that ends
                          ^
    `_Requests` (detached, one per cluster) waits for the end of every lease
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

NAME = "multistill-resource-requests"
NAMESPACE = "multistill"
_HEAD = {"node:__internal_head__": 0.001}
"""Both actors run on the head node: it is the one that a cluster cannot lose."""
_CALL_TIMEOUT_SECONDS = 120.0


class _Lease:
    """Lives as long as the run that created it."""

    async def ended(self) -> None:
        """Return never; the call fails once this actor is gone."""
        await asyncio.Event().wait()


class _Requests:
    """Requests from the autoscaler the most that a run with a living lease needs."""

    def __init__(self) -> None:
        self._required: dict[str, Mapping[str, float]] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    async def add(self, name: str, lease: Any, required: Mapping[str, float]) -> None:
        """Request at least these resources until the lease ends."""
        self._required[name] = required
        self._request()
        watcher = asyncio.get_running_loop().create_task(self._withdraw_after(name, lease))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _withdraw_after(self, name: str, lease: Any) -> None:
        import ray

        with suppress(ray.exceptions.RayError):
            await lease.ended.remote()
        await self.withdraw(name)

    async def withdraw(self, name: str) -> None:
        """Forget what this run requires."""
        if self._required.pop(name, None) is not None:
            self._request()

    def _request(self) -> None:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles_of(self._required.values()))


def bundles_of(requirements: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """What to request so that a cluster meets each of the requirements on its own.

    Units of a resource are requested one by one: they may be on different nodes.
    """
    most: dict[str, float] = {}
    for required in requirements:
        for name, amount in required.items():
            most[name] = max(amount, most.get(name, 0.0))
    return [{name: 1.0} for name, amount in most.items() for _ in range(math.ceil(amount))]


@contextmanager
def requested(required: Mapping[str, float]) -> Iterator[None]:
    """Ask the connected cluster's autoscaler for these resources for the duration of the block.

    The request ends with the block, and with this process however it ends.

    Args:
        required: Ray's resource names and amounts, e.g. {"GPU": 4}.
    """
    import ray

    lease = ray.remote(_Lease).options(num_cpus=0, resources=_HEAD).remote()
    requests = (
        ray.remote(_Requests)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources=_HEAD,
        )
        .remote()
    )
    name = uuid.uuid4().hex
    ray.get(requests.add.remote(name, lease, dict(required)), timeout=_CALL_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        if ray.is_initialized():
            # Before the connection ends: Ray takes seconds to notice that a job is over.
            ray.get(requests.withdraw.remote(name), timeout=_CALL_TIMEOUT_SECONDS)
            ray.kill(lease)
