"""What is said of work that no node has room for: it would wait in silence."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from multistill.cluster.nodes import alive_nodes
from multistill.wording import counted

FIRST_S, AGAIN_S = 60.0, 600.0
_LOOK_S = 1.0


class Waiting:
    """Says once nothing has run for a minute what is waited for, and again every ten minutes.

    Args:
        say: gets the sentence.
        what: waits, e.g. `the search`.
        each: of what it runs, e.g. `trial`.
        workers: processes of each.
        need: resources of a worker.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        what: str,
        each: str,
        workers: int,
        need: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._clock = say, clock
        asked = _amounts(need)
        self._asked = f"{asked} in each of {workers} workers" if workers > 1 else asked
        self._what, self._each, self._names = what, each, tuple(need)
        self._looked = self._ran = clock()
        self._next = FIRST_S

    def look(self, runs: Callable[[], bool]) -> None:
        """Call it often.

        Args:
            runs: whether anything runs; asked once a second.
        """
        now = self._clock()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if runs():
            self._ran, self._next = now, FIRST_S
        elif now - self._ran >= self._next:
            self._next = now - self._ran + AGAIN_S
            with contextlib.suppress(Exception):  # the head node is busy, restarts, or is gone
                self._say(self._sentence(now - self._ran))

    def _sentence(self, seconds: float) -> str:
        minutes = counted(int(seconds // 60), "minute")
        return (
            f"no {self._each} has run for {minutes}: each asks for {self._asked}, and the cluster "
            f"has {self._cluster()}; {self._what} waits and goes on by itself, Ctrl-C ends it and "
            "the same command continues it"
        )

    def _cluster(self) -> str:
        import ray

        nodes = alive_nodes()
        if not nodes:
            return "no node that takes work"
        free = ray.available_resources()
        texts = [
            f"{sum(node.get(name, 0.0) for node in nodes):g} {name} ({free.get(name, 0.0):g} free)"
            for name in self._names
        ]
        return f"{counted(len(nodes), 'node')} with {' and '.join(texts)}"


def _amounts(need: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in need.items())
