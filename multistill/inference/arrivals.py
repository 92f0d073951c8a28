"""Samples as they arrive: received by one thread, predicted by another, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LOOKS = 0.2  # seconds after which a stopped stream is noticed


class Piece(NamedTuple):
    """Samples [n] of a stream, and the seconds of audio that wait behind them."""

    samples: npt.NDArray[np.generic]
    waiting: float = 0.0


class Arrivals:
    """A queue of samples that knows how far its reader is behind real time.

    Args:
        rate: samples in a second.
        most: seconds that can wait.

    Attributes:
        lost: seconds that `offer` had to leave out.
    """

    def __init__(self, rate: int, most: float = 30.0) -> None:
        self.lost = 0.0
        self._rate = rate
        self._most = most
        self._pieces: deque[npt.NDArray[np.generic]] = deque()
        self._queued = self._given = 0.0
        self._began: float | None = None
        self._ended = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def offer(self, samples: npt.NDArray[np.generic]) -> None:
        """Add samples, or lose them where no more can wait; never waits."""
        with self._changed:
            if self._queued < self._most:
                self._add(samples)
            else:
                self.lost += len(samples) / self._rate

    def put(self, samples: npt.NDArray[np.generic]) -> bool:
        """Add samples once there is room for them; False: nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued < self._most or self._ended)
            if not self._ended:
                self._add(samples)
            return not self._ended

    def end(self, error: Exception | None = None) -> None:
        """There is no more; an error is raised once what is there was given."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def pieces(self, stopped: Callable[[], bool]) -> Iterator[Piece]:
        """What arrives, until there is no more or `stopped`.

        Audio waits as far as it is older than it would be in real time: a file that is written
        to a pipe at once is ahead of it.
        """
        while not stopped():
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._ended, timeout=_LOOKS)
                if not self._pieces:
                    if not self._ended:
                        continue
                    if self._error is not None:
                        raise self._error
                    return
                samples = self._pieces.popleft()
                self._queued -= len(samples) / self._rate
                self._given += len(samples) / self._rate
                self._changed.notify_all()
                assert self._began is not None
                behind = time.monotonic() - self._began - self._given
                waiting = max(0.0, min(self._queued, behind))
            yield Piece(samples, waiting)

    def _add(self, samples: npt.NDArray[np.generic]) -> None:
        seconds = len(samples) / self._rate
        if self._began is None:
            self._began = time.monotonic() - seconds
        self._pieces.append(samples)
        self._queued += seconds
        self._changed.notify_all()
