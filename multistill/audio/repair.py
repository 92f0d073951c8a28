"""Wav files whose writer streamed and left lengths of 0, which libsndfile reads as no sound."""

from __future__ import annotations

import os
from struct import pack_into

_SEARCHED = 4096


class Repaired:
    """A read-only file object over a descriptor, with other first bytes."""

    def __init__(self, handle: int, head: bytes) -> None:
        self._handle = handle
        self._head = head
        self._size = os.fstat(handle).st_size
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        end = self._size if length < 0 else min(self._size, self._position + length)
        head = self._head[self._position : end]
        rest = max(0, end - self._position - len(head))
        data = head + os.pread(self._handle, rest, self._position + len(head))
        self._position += len(data)
        return data

    def write(self, data: bytes) -> int:
        raise OSError("opened for reading")


def repaired_header(handle: int) -> bytes | None:
    """The first bytes of a wav file with a `data` chunk of length 0 and bytes after it, mended.

    Returns:
        None for any other file, which is read as it is.
    """
    head = bytearray(os.pread(handle, _SEARCHED, 0))
    size = os.fstat(handle).st_size
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    start = 12
    while start + 8 <= len(head):
        length = int.from_bytes(head[start + 4 : start + 8], "little")
        if head[start : start + 4] == b"data":
            rest = size - start - 8
            if length or not 0 < rest < 2**32:
                return None
            pack_into("<I", head, start + 4, rest)
            pack_into("<I", head, 4, min(size - 8, 2**32 - 1))
            return bytes(head)
        start += 8 + length + length % 2
    return None
