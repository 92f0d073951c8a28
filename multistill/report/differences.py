"""Differences with their intervals and p-values as cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def signed(metric: Mapping[str, Any]) -> str:
    """`+0.071 [-0.056, +0.198], p 0.863`, or a dash if the difference is not defined."""
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    interval = "" if low is None else f" [{_sign(low, 3)}, {_sign(high, 3)}]"
    return _sign(value, 3) + interval + _p(metric, ", ")


def stacked(metric: Mapping[str, Any]) -> str:
    """The value above its interval, so that the table fits into 80 columns."""
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    interval = "" if low is None else f"\n{_sign(low, 2)}…{_sign(high, 2)}"
    return _sign(value, 3) + interval + _p(metric, "\n")


def _p(metric: Mapping[str, Any], before: str) -> str:
    """The p-value, corrected for all pairs; nothing where none was tested."""
    p = metric.get("p_holm")
    return "" if p is None else f"{before}p {p:.3f}" if p >= 0.001 else f"{before}p < .001"


def _sign(value: float, digits: int) -> str:
    """The number with its sign; what rounds to zero is no negative zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
