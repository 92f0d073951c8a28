"""How far several trainings are together, which of them run, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from multistill.wording import listed


class TrainingProgress:
    """Counts the epochs of trainings, some of which run at the same time.

    Args:
        budgets: epochs of each training that is to be done, by its name.
        clock: seconds, monotonic.
    """

    def __init__(
        self, budgets: Mapping[str, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._budgets, self._clock = dict(budgets), clock
        self._epochs: dict[str, int] = {}
        self._ended: set[str] = set()
        self._trained, self._since = 0, 0.0

    def started(self, name: str, epoch: int) -> None:
        """A training begins, or goes on, after so many epochs."""
        if not self._epochs:
            self._since = self._clock()
        self._epochs[name] = epoch

    def reached(self, name: str, epoch: int) -> None:
        """A training has ended an epoch."""
        self._trained += epoch - self._epochs.get(name, epoch - 1)
        self._epochs[name] = epoch

    def ended(self, name: str) -> None:
        """A training has ended, perhaps before its last epoch."""
        self._ended.add(name)

    @property
    def total(self) -> int:
        return sum(self._budgets.values())

    @property
    def done(self) -> int:
        """Epochs that need not be trained any more."""
        return self.total - sum(self._left(name) for name in self._budgets)

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None until an epoch has been trained."""
        if not self._trained:
            return None
        return (self._clock() - self._since) / self._trained * (self.total - self.done)

    @property
    def running(self) -> str:
        """The trainings that have begun and not ended: `audio 5/15, text 7/15`."""
        names = [name for name in self._epochs if self._left(name)]
        return listed([f"{name} {self._epochs[name]}/{self._budgets[name]}" for name in names])

    def _left(self, name: str) -> int:
        if name in self._ended:
            return 0
        return max(0, self._budgets[name] - self._epochs.get(name, 0))
