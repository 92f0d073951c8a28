"""The small files beside the weights of an encoder, read field by field.

They come from anywhere: a field may hold any JSON value, or the file be no JSON at all. What is
not what it has to be is told in one sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multistill.errors import UsageError


class DamagedFileError(UsageError):
    """A file is not what its name says; the message names the file and the field."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} is damaged: {problem}; copy the file from its source again")


class Fields:
    """A JSON object. A field that is absent or null is None, or has no value where one is required.

    Each method raises `DamagedFileError` for a field that is not what it has to be.
    """

    def __init__(self, path: Path, values: dict[str, Any], name: str = "") -> None:
        self.path = path
        self._values = values
        self._name = name

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def raw(self, key: str) -> Any:
        return self._values.get(key)

    def text(self, key: str) -> str | None:
        value = self.raw(key)
        return value if value is None or isinstance(value, str) else self._refuse(key, "text")

    def whole(self, key: str) -> int | None:
        """A whole number, such as a size or an id."""
        value = self.raw(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        return self._refuse(key, "a whole number")

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise self._missing(key)
        return value

    def required_whole(self, key: str) -> int:
        value = self.whole(key)
        if value is None:
            raise self._missing(key)
        return value

    def rate(self, key: str) -> float | None:
        """A number that may be written as text or with a decimal point."""
        value = self.raw(key)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        return number if math.isfinite(number) else self._refuse(key, "a number")

    def section(self, key: str) -> Fields:
        """An object; an empty one if it is absent or null."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            return self._refuse(key, "an object")
        return Fields(self.path, value or {}, f"{self._name}{key}.")

    def sections(self, key: str) -> Iterator[Fields]:
        """A list of objects; none if it is absent or null."""
        value = self.raw(key)
        if value is not None and not isinstance(value, list):
            self._refuse(key, "a list")
        for number, item in enumerate(value or []):
            place = f"{key}.{number}"
            if not isinstance(item, dict):
                self._refuse(place, "an object")
            yield Fields(self.path, item, f"{self._name}{place}.")

    def whole_numbers(self) -> dict[str, int]:
        """All fields, each of which has to be a whole number."""
        return {key: self.required_whole(key) for key in self._values}

    def token_ids(self, key: str) -> dict[str, int]:
        """Tokens with their ids: an object of them, or a list of tokens, each with its score."""
        value = self.raw(key)
        if value is None:
            raise self._missing(key)
        if not isinstance(value, list):
            return self.section(key).whole_numbers()
        tokens = {}
        for number, entry in enumerate(value):
            if not (isinstance(entry, list) and entry and isinstance(entry[0], str)):
                self._refuse(f"{key}.{number}", "a token with its score")
            tokens[entry[0]] = number
        return tokens

    def _missing(self, key: str) -> DamagedFileError:
        return DamagedFileError(self.path, f"it has no `{self._name}{key}`")

    def _refuse(self, key: str, what: str) -> Any:
        raise DamagedFileError(self.path, f"`{self._name}{key}` is not {what}")


def fields_of(path: Path) -> Fields:
    """The JSON object in a file; an empty one if there is no such file.

    Raises:
        DamagedFileError: it is no JSON object, or cannot be read.
    """
    if not path.exists():
        return Fields(path, {})
    try:
        content = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, "it is no JSON") from error
    if not isinstance(content, dict):
        raise DamagedFileError(path, "it is no JSON object")
    return Fields(path, content)


def text_of(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        DamagedFileError: it is none, or cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is not UTF-8") from error
    except OSError as error:
        raise DamagedFileError(path, f"it cannot be read ({error.strerror})") from error
