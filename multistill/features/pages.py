"""Reading memory-mapped files ahead of their use."""

from __future__ import annotations

import ctypes
import mmap

from multistill.typing import AnyArray

_ADVICE = getattr(mmap, "MADV_WILLNEED", None)
_LIBRARY = ctypes.CDLL(None, use_errno=True)
# Not `mmap.madvise`: such an object keeps a descriptor open, and a store has thousands of files.
_MADVISE = getattr(_LIBRARY, "madvise", None)
if _MADVISE is not None:
    _MADVISE.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def will_need(values: AnyArray) -> None:
    """Start to read a contiguous view of a mapped file from the disk, without waiting for it.

    The kernel otherwise reads one small piece after another, each when it is first used. What is
    in memory already costs a few microseconds. Advice alone: a system without it reads later.
    """
    if _MADVISE is not None and _ADVICE is not None and values.nbytes:
        address = values.__array_interface__["data"][0]
        start = address - address % mmap.PAGESIZE
        _MADVISE(start, address + values.nbytes - start, _ADVICE)
