"""Files that leave the length of their sound open: libsndfile refuses them, or guesses."""

from __future__ import annotations

import os
from struct import Struct

from multistill.audio.compressed import id3_length, mp3_without_length
from multistill.audio.parts import FilePart

_SEARCHED = 1 << 20  # bytes before the samples


class Repaired:
    """A read-only file object over a descriptor, with other first bytes.

    Args:
        head: stands for the first `replaced` bytes of the file.
    """

    def __init__(self, handle: int, head: bytes, replaced: int) -> None:
        self._handle = handle
        self._head = head
        self._shift = replaced - len(head)
        self._size = os.fstat(handle).st_size - self._shift
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
        data = head
        if rest:
            data += os.pread(self._handle, rest, self._position + len(head) + self._shift)
        self._position += len(data)
        return data

    def write(self, data: bytes) -> int:
        raise OSError("opened for reading")


def repaired(handle: int) -> Repaired | None:
    """The file with the length of its sound, if it is a wav, caf or MP3 file without one.

    Returns:
        None for any other file, which is read as it is.
    """
    size = os.fstat(handle).st_size
    magic = os.pread(handle, 12, 0)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        part = FilePart(handle, size, b"")
        found = mp3_without_length(part, id3_length(part))
        return None if found is None else Repaired(handle, *found)
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        start, head, unit, unknown = 12, Struct("<4sI"), 2, 0
    elif magic[:4] == b"caff":
        start, head, unit, unknown = 8, Struct(">4sq"), 1, -1
    else:
        return None
    while start < _SEARCHED:
        data = os.pread(handle, head.size, start)
        if len(data) < head.size:
            return None
        name, length = head.unpack(data)
        if name == b"data":
            rest = size - start - head.size
            if length != unknown or not 0 < rest < 2**32:
                return None
            first = os.pread(handle, start, 0) + head.pack(name, rest)
            return Repaired(handle, first, len(first))
        if length < 0:
            return None
        start += head.size + length + (length % unit)
    return None
