"""Notice that workers were lost for good, instead of waiting for them without end.

Ray restarts the actors of a lost node wherever there is room, and waits where there is
none: right while an autoscaler brings a new node, a hang where nobody does.
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
"""Time for a lost node to be replaced."""
POLL_S = 5.0


def watched(
    items: Iterable[Item],
    lacking: Callable[[], str | None],
    *,
    grace_s: float = GRACE_S,
    poll_s: float = POLL_S,
) -> Iterator[Item]:
    """The items, as long as they come or as what they need is there.

    Args:
        lacking: what the cluster lacks for the work now, or None.
    Raises:
        MultistillError: something lacked for `grace_s` in which no item came.
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
    lost_since: float | None = None
    try:
        while True:
            try:
                kind, value = arrived.get(timeout=poll_s)
            except queue.Empty:
                missing = lacking()
                now = time.monotonic()
                lost_since = None if missing is None else lost_since or now
                if lost_since is None or now - lost_since < grace_s:
                    continue
                raise MultistillError(
                    f"nothing was encoded for {grace_s:g} s: {missing}; finished shards are "
                    "kept, run the same command again to go on with what there is"
                ) from None
            lost_since = None
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
