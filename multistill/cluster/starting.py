"""A local Ray that starts in the background, while its run does what needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from multistill.cluster import session

if TYPE_CHECKING:
    from multistill.config import ResourcesConfig


@contextmanager
def starting(
    resources: ResourcesConfig, *, dashboard: bool = False
) -> Iterator[Callable[[], None]]:
    """Start a local Ray in a thread; it is shut down at the end of the block.

    Args:
        dashboard: as of `session.start`.

    Yields:
        what waits until it has started, after which `session.start` finds it. It raises the
        errors of `session.start`.
    """
    session.set_environment(resources)
    import ray  # before the thread, which would import it beside the imports of this one

    with ThreadPoolExecutor(1, "ray") as thread:
        started = thread.submit(session.init_local, resources, dashboard)
        try:
            yield started.result
        finally:
            if started.exception() is None:
                ray.shutdown()
