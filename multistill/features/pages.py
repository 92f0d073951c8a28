"""How memory-mapped files are read from the disk: what is asked for, ahead of its use, and no more.

At a page that is not in memory the kernel reads what is around it too, as much as the device's
`read_ahead_kb`: 128 KB on most machines, 8 MB and more on network disks. An epoch in random order
over a store larger than memory would read most clips again and again for the sake of others.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Protocol

from multistill.typing import AnyArray

_WILL_NEED = getattr(mmap, "MADV_WILLNEED", None)
_RANDOM = getattr(mmap, "MADV_RANDOM", None)
_PIECE = 128 << 10
"""Bytes asked for at once: of more, Linux reads no more than the device's read-ahead."""
_LIBRARY = ctypes.CDLL(None, use_errno=True)
# Not `mmap.madvise`: such an object keeps a descriptor open, and a store has thousands of files.
_MADVISE = getattr(_LIBRARY, "madvise", None)
if _MADVISE is not None:
    _MADVISE.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapped(Protocol):
    """A part of a mapped file, such as a `pyarrow.Buffer`."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int: ...


def read_at_random(file: Mapped) -> None:
    """Let the kernel read single pages of a mapped file; whole clips are asked for (`will_need`).

    Advice alone, like `will_need`.
    """
    if _MADVISE is not None and _RANDOM is not None and file.size:
        start = file.address - file.address % mmap.PAGESIZE
        _MADVISE(start, file.address + file.size - start, _RANDOM)


def will_need(values: AnyArray) -> None:
    """Start to read a contiguous view of a mapped file from the disk, without waiting for it.

    The kernel otherwise reads one small piece after another, each when it is first used. What is
    in memory already costs a few microseconds. Advice alone: a system without it reads later.
    """
    if _MADVISE is None or _WILL_NEED is None or not values.nbytes:
        return
    address = values.__array_interface__["data"][0]
    start, end = address - address % mmap.PAGESIZE, address + values.nbytes
    for piece in range(start, end, _PIECE):
        _MADVISE(piece, min(_PIECE, end - piece), _WILL_NEED)
