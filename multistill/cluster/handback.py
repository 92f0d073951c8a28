"""Whether a worker should save its work and give it back: its node goes away, or its driver ends.

A cloud or Kubernetes announces that a node goes, Ray's autoscaler (or `ray drain-node`, in the
preStop hook of a pod) marks it as draining, and places nothing more on it. A driver that gets
SIGTERM asks its own workers. Both are read from Ray's head node, once a second, by a thread: the
training asks `Watch` after every step, which costs nothing.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from multistill.cluster.nodes import draining_nodes, read_note, remove_note, write_note

POLL_S = 1.0
_ASK_S = 10.0
"""To wait for a head node that does not take a request."""

Reason = Literal["driver", "node"]
"""Who asks: the driver, which ends, or a worker whose node is drained."""


class Request:
    """A request to all workers of a run to save and return.

    Args:
        name: of the run; unique on the cluster. Default: a new one.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or uuid.uuid4().hex[:12]

    def send(self, reason: Reason) -> None:
        """Ask. A driver's request is not replaced by that of a node."""
        write_note(self._key, reason, overwrite=reason == "driver")

    def reason(self) -> Reason | None:
        """Who has asked; None: nobody."""
        match read_note(self._key):
            case "driver":
                return "driver"
            case "node":
                return "node"
        return None

    def clear(self) -> None:
        """Take the request back; raises nothing, since it ends a run that may have failed."""
        with contextlib.suppress(Exception):  # the head node is gone, and the note with it
            remove_note(self._key)

    @property
    def _key(self) -> str:
        return f"hand-back-{self.name}"


class Watch:
    """Looks in a thread for a reason to hand work back. Call it to know whether there is one.

    Args:
        request: of this run.
        node: id of the node whose end is a reason; None: none is.
        forward: a worker whose node is drained asks the other workers of its run, too, since
            they cannot go on without it.
    """

    def __init__(self, request: Request, node: str | None, *, forward: bool = False) -> None:
        self.request, self._node, self._forward = request, node, forward
        self.reason: Reason | None = None
        self._closed = threading.Event()
        self.look()
        threading.Thread(target=self._run, name="hand-back", daemon=True).start()

    def __call__(self) -> bool:
        return self.reason is not None

    def look(self) -> None:
        """Ask Ray now. What it does not answer is asked again."""
        with contextlib.suppress(Exception):  # the head node is busy, restarts, or is gone
            reason = self.request.reason()
            if reason is None and self._node is not None and self._node in draining_nodes():
                reason = "node"
                if self._forward:
                    self.request.send(reason)
            self.reason = reason

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            self.look()


@contextmanager
def on_sigterm(first: Callable[[], object]) -> Iterator[None]:
    """Let the first SIGTERM of the block call `first`, a second one raise KeyboardInterrupt.

    `first` runs in a thread: the main thread may be inside a call of Ray. It has returned when the
    block ends. Without effect in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asking: threading.Thread | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asking
        if asking is not None:
            raise KeyboardInterrupt
        asking = threading.Thread(target=first, name="sigterm", daemon=True)
        asking.start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if asking is not None:
            asking.join(_ASK_S)
