"""A local Ray that starts in the background, while its run does what needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
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

    def shut_down(started: Future[None]) -> None:
        if started.exception() is None:
            ray.shutdown()

    leaving = Event()
    # The thread lives until Ray is shut down: Ray's processes have PR_SET_PDEATHSIG, so that the
    # kernel kills them when the thread that started them ends.
    with ThreadPoolExecutor(1, "ray") as thread:
        started = thread.submit(session.init_local, resources, dashboard, leaving.is_set)
        try:
            yield started.result
        finally:
            leaving.set()
            # At once, or by the thread as soon as Ray has started. The end of the block waits for
            # the thread; a Ctrl-C that ends this wait leaves the shutdown to it.
            started.add_done_callback(shut_down)
