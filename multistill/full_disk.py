"""A full disk, as each library reports it, and the one sentence that says so."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multistill.errors import MultistillError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_EITHER = "|".join(map(str, _NUMBERS))
_TEXTS = re.compile(
    rf"os error ({_EITHER})\b"  # safetensors
    r"|\d+ requested and \d+ written"  # NumPy
    rf"|\[Errno ({_EITHER})\]"  # an error of another process, as Ray passes it on
)


class FullDiskError(MultistillError):
    """A disk is full, or an account's quota on it."""

    @classmethod
    def of(cls, folder: Path | str, kept: str) -> FullDiskError:
        """The error with its sentence.

        Args:
            folder: on the disk.
            kept: what is not lost, in the plural, e.g. `finished epochs`.
        """
        return cls(
            f"the disk of {folder}, or your quota on it, is full; free some space and run the "
            f"same command again: {kept} are kept"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or quota is full.

    safetensors, NumPy and Ray give no `errno`, so their texts are looked at. A MultistillError
    has said what it has to say already.
    """
    while error is not None and not isinstance(error, MultistillError):
        number = error.errno if isinstance(error, OSError) else None
        if number in _NUMBERS or (number is None and _TEXTS.search(str(error))):
            return True
        error = error.__cause__
    return False


@contextmanager
def writing(folder: Path, kept: str) -> Iterator[None]:
    """Turn the errors of a full disk into one sentence; others stay as they are.

    Args:
        folder, kept: as of `FullDiskError.of`.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise FullDiskError.of(folder, kept) from error
