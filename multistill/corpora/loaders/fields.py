"""What the cells of a table say: names, whole numbers, scales, and why a row is left out."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

MOST = 2**31 - 1
"""The largest turn or count: the manifest keeps them in 32 bits."""

_SHOWN = 40
_GENDERS = {
    "f": "F",
    "female": "F",
    "여": "F",
    "여성": "F",
    "m": "M",
    "male": "M",
    "남": "M",
    "남성": "M",
}


class RowError(ValueError):
    """Why one row does not become an utterance."""


def gender_of(text: str) -> str | None:
    """F or M where the word is known, else the word itself."""
    return _GENDERS.get(text.casefold(), text) if text else None


def stem(path: str) -> str:
    """A path without its ending: the name of an utterance that has no other."""
    return path.replace("\\", "/").rsplit(".", 1)[0]


def plain_text(value: Any) -> str:
    """A Parquet value as a CSV would tell it: empty text for what is not there."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # the second is true of NaN only
        return ""
    if isinstance(value, float) and value.is_integer():
        # A column of numbers with a gap becomes float on the way through pandas.
        return str(int(value))
    return str(value)


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def listed(text: str) -> list[str]:
    """The parts of a list written as text."""
    inner = text.strip("[]() ")
    return re.split(r"[\s,;|]+", inner) if inner else []


class Scale(NamedTuple):
    """A rating from 1 to 5 and the note on one that is not."""

    value: float | None
    note: tuple[tuple[str, str], ...] = ()


def scale(text: str, column: str) -> Scale:
    if not text:
        return Scale(None)
    value = _number(text, column)
    if 1.0 <= value <= 5.0:
        return Scale(value)
    note = f"{column} {value:g} is not from 1 to 5 and is left out"
    return Scale(None, (("off the scale", note),))


def turn_of(text: str) -> int:
    if not text:
        raise RowError("no value in column `turn`")
    return whole(text, "turn")


def whole(text: str, column: str) -> int:
    """A whole number from 0 to `MOST`.

    Raises:
        RowError: where the cell says anything else.
    """
    if text.isdecimal() and len(text) < 10:
        return int(text)
    try:
        found = _number(text, column)
    except RowError:
        found = -1.0
    if not 0 <= found <= MOST or not found.is_integer():
        raise RowError(
            f"column `{column}` says `{_shown(text)}`, which is no whole number from 0 to {MOST}"
        )
    return int(found)


def _number(text: str, column: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RowError(f"column `{column}` says `{_shown(text)}`, which is no number")
    return found


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
