"""Reading short pieces of a file, and comparing announced lengths with the file's."""

from __future__ import annotations

import os
from typing import NamedTuple

from multistill.audio.errors import UnusableClipError

UNKNOWN = (0, 0xFFFFFF00, 2**63 - 2**12)
"""A length of 0, one that fills its 32 bits, and one that fills its 64: not known when written."""


class Promise(NamedTuple):
    """What a container says about its length.

    Attributes:
        frames: that decoding must give; None if the container does not say, or not reliably.
        slack: frames by which a complete file may stay below.
        header: frames, rate, channels and encoding of a file whose header libsndfile need not read.
    """

    frames: int | None = None
    slack: int = 0
    header: tuple[int, int, int, str] | None = None


class FilePart:
    """A file to read short pieces of; `head` holds its first bytes."""

    def __init__(self, handle: int, size: int, head: bytes) -> None:
        self.size = size
        self._handle = handle
        self._head = head

    def read(self, start: int, length: int) -> bytes:
        """These bytes, fewer at the end of the file."""
        if start + length <= len(self._head):
            return self._head[start : start + length]
        if start >= self.size:
            return b""
        return os.pread(self._handle, length, start)


def refuse_missing(part: FilePart, start: int, length: int) -> bool:
    """Compare an announced length with the file; False if the length means that it is unknown.

    Raises:
        UnusableClipError: the file ends before.
    """
    zero, all32, all64 = UNKNOWN
    if length <= zero or all32 <= length <= 0xFFFFFFFF or length >= all64:
        return False
    # A chunk of odd length is padded, and some writers count the padding.
    if length - max(0, part.size - start) > length % 2:
        raise UnusableClipError(
            "truncated",
            f"it has {max(0, part.size - start)} of {length} bytes of samples",
        )
    return True
