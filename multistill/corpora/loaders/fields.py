"""Parsing of table fields: genders, whole numbers, rating scales, lists, file stems."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from multistill.config.tasks import SCALE

MAX_INT = 2**31 - 1
"""The largest turn or vote count: the manifest keeps them in 32 bits."""

_MAX_SHOWN = 40
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


_STYLES = {
    "script": "scripted",
    "scripted": "scripted",
    "read": "scripted",
    "impro": "improvised",
    "improv": "improvised",
    "improvised": "improvised",
    "improvisation": "improvised",
}
OLDEST = 120


class RowError(ValueError):
    """Why a row is rejected."""


def parse_gender(text: str) -> str | None:
    """F or M if the word is known, else the word itself; None if empty."""
    return _GENDERS.get(text.casefold(), text) if text else None


def parse_style(text: str) -> str | None:
    """`scripted` or `improvised` if the word is known, else the word itself; None if empty."""
    return _STYLES.get(text.casefold(), text) if text else None


def parse_age(text: str) -> Rating:
    """An age in years; None with a note if the field is no such number."""
    if not text:
        return Rating(None)
    try:
        years = float(text)
    except ValueError:
        years = math.nan
    if 0 < years <= OLDEST:
        return Rating(years)
    note = f"age `{_shorten(text)}` is not a number of years from 0 to {OLDEST} and is ignored"
    return Rating(None, (("no age", note),))


def stem(path: str) -> str:
    """A path without its extension: the id of an utterance that has no other."""
    return path.replace("\\", "/").rsplit(".", 1)[0]


def to_text(value: Any) -> str:
    """A Parquet value as it would be written in a CSV file; missing values are empty."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # the latter holds for NaN only
        return ""
    if isinstance(value, float) and value.is_integer():
        # pandas turns an integer column with missing values into floats.
        return str(int(value))
    return str(value)


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def split_list(text: str) -> list[str]:
    """The items of a list written as text, e.g. `[8, 1, 0]`."""
    inner = text.strip("[]() ")
    return re.split(r"[\s,;|]+", inner) if inner else []


class Rating(NamedTuple):
    """A rating from 1 to 5, or None with a `(kind, text)` note if it is off the corpus's scale."""

    value: float | None
    notes: tuple[tuple[str, str], ...] = ()


def parse_rating(text: str, column: str, scale: tuple[float, float] = SCALE) -> Rating:
    """Parse valence, arousal or dominance, mapped linearly from the corpus's scale to 1 to 5.

    Raises:
        RowError: if the field is not a number.

    Examples:
        >>> parse_rating("4", "valence", (1, 7)).value
        3.0
    """
    if not text:
        return Rating(None)
    value = _parse_number(text, column)
    low, high = scale
    if not low <= value <= high:
        note = f"{column} {value:g} is not from {low:g} to {high:g}"
        return Rating(None, ((off_scale(column), note),))
    if scale == SCALE:
        return Rating(value)
    bottom, top = SCALE
    return Rating(bottom + (top - bottom) * (value - low) / (high - low))


def off_scale(dimension: str) -> str:
    """Kind of the notes on values of a dimension that are off the corpus's scale."""
    return f"{dimension} off the scale"


def parse_turn(text: str) -> int:
    if not text:
        raise RowError("no value in column `turn`")
    return parse_count(text, "turn")


def parse_count(text: str, column: str) -> int:
    """A whole number from 0 to `MAX_INT`.

    Raises:
        RowError: if the field is anything else.
    """
    if text.isdecimal() and len(text) < 10:
        return int(text)
    try:
        value = _parse_number(text, column)
    except RowError:
        value = -1.0
    if not 0 <= value <= MAX_INT or not value.is_integer():
        raise RowError(
            f"column `{column}`: `{_shorten(text)}` is not a whole number from 0 to {MAX_INT}"
        )
    return int(value)


def _parse_number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RowError(f"column `{column}`: `{_shorten(text)}` is not a number")
    return value


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
