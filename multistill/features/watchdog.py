"""A time limit on waiting for lost workers.

Ray restarts the actors of a lost node on other nodes, or waits until there are resources for
them. Waiting is right while an autoscaler replaces the node, and a hang if nothing does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from multistill.errors import MultistillError

Item = TypeVar("Item")

GRACE_S = 600.0
"""Time within which a lost node must be replaced."""
POLL_S = 5.0


def watch(
    items: Iterable[Item],
    find_shortage: Callable[[], str | None],
    *,
    grace_s: float = GRACE_S,
    poll_s: float = POLL_S,
) -> Iterator[Item]:
    """Yield the items; fail if none arrives while the cluster stays short of resources.

    Args:
        find_shortage: returns the current shortage as text, or None.

    Raises:
        MultistillError: no item arrived for `grace_s`, with a shortage all that time.
        whatever `items` raises.
    """
    arrived: queue.SimpleQueue[tuple[str, Item | BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                arrived.put(("item", item))
            arrived.put(("end", None))
        except BaseException as error:
            arrived.put(("error", error))

    threading.Thread(target=read, name="features-reader", daemon=True).start()
    short_since: float | None = None
    try:
        while True:
            try:
                kind, value = arrived.get(timeout=poll_s)
            except queue.Empty:
                shortage = find_shortage()
                now = time.monotonic()
                short_since = None if shortage is None else short_since or now
                if short_since is None or now - short_since < grace_s:
                    continue
                raise MultistillError(
                    f"nothing was encoded for {grace_s:g} s: {shortage}; finished shards are "
                    "kept, run the same command again to continue on the remaining resources"
                ) from None
            short_since = None
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
