"""A forecast quantity with its low and its high end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A quantity that is most likely `value`, and seldom outside `low` to `high`.

    Sums add the ends, since what makes one part of a job slow (a busy machine, a slow disk)
    makes the others slow too.
    """

    low: float
    value: float
    high: float

    @classmethod
    def around(cls, value: float, factor: float) -> Spread:
        """`value`, within that factor in both directions."""
        return cls(value / factor, value, value * factor)

    @classmethod
    def of(cls, values: Sequence[float], factor: float = 1.0) -> Spread:
        """The median of measurements, from the lowest to the highest.

        Args:
            factor: within which a single measurement is repeated; both ends are at least that
                far from the median.
        """
        middle = statistics.median(values)
        return cls(min(min(values), middle / factor), middle, max(max(values), middle * factor))

    @classmethod
    def total(cls, parts: Iterable[Spread]) -> Spread:
        result = cls(0.0, 0.0, 0.0)
        for part in parts:
            result = result + part
        return result

    @classmethod
    def read(cls, values: Mapping[str, float]) -> Spread:
        """Inverse of `as_json`."""
        return cls(float(values["low"]), float(values["value"]), float(values["high"]))

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.low + other.low, self.value + other.value, self.high + other.high)

    def __mul__(self, other: Spread | float) -> Spread:
        """The product of quantities that are not negative."""
        if isinstance(other, Spread):
            return Spread(self.low * other.low, self.value * other.value, self.high * other.high)
        return Spread(self.low * other, self.value * other, self.high * other)

    def as_json(self) -> dict[str, float]:
        return {"low": self.low, "value": self.value, "high": self.high}


def spread_or_none(values: Any) -> Spread | None:
    """A spread of `as_json`, or None where there is none."""
    return None if values is None else Spread.read(values)
