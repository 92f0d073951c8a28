"""Digests of whole files, computed once per file and remembered in the workspace.

The digest of a recording names its content in manifests and in the keys of features, so it sees
every byte. It is the 128-bit XXH3, which takes less time than reading: it distinguishes
recordings and does not protect against tampering.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
from filelock import FileLock
from xxhash import xxh3_128

from multistill.workspace import atomic_path

THREADS = 8
_BLOCK = 1 << 20  # bytes
_UNSORTED = 65_536  # new digests held as Python objects
_Entries: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
SETTLED = 2.0  # seconds; a file that changed later may change again within the clock's step


def digest_of(handle: int) -> str:
    """The digest of an open file, as 32 hex digits; the position of the descriptor stays."""
    state = xxh3_128()
    buffer = bytearray(min(_BLOCK, os.fstat(handle).st_size + 1))
    view = memoryview(buffer)
    position = 0
    while count := os.preadv(handle, [buffer], position):
        state.update(view[:count])
        position += count
    return state.hexdigest()


class Digests:
    """Digests of files, remembered by path, size, times of modification and change, and inode.

    The time of change, unlike that of modification, cannot be set back, so an edit that restores
    the latter is noticed. 32 bytes per file, also on disk.

    Args:
        path: the file that holds them; None: remember for this process only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = _load(path)
        self._added = _load(None)  # new and sorted
        self._new: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def digest(self, path: str, handle: int) -> str:
        """The digest of an open file. Several threads may call it."""
        status = os.fstat(handle)
        key = _key(path, status)
        known = self._new.get(key) or _find(self._added, key) or _find(self._known, key)
        if known is not None:
            return known.hex()
        digest = digest_of(handle)
        changed = max(status.st_mtime, status.st_ctime)
        if key == _key(path, os.fstat(handle)) and time.time() - changed > SETTLED:
            self._new[key] = bytes.fromhex(digest)
            if len(self._new) >= max(_UNSORTED, self._added.shape[1] // 8):
                self._sort_new()
        return digest

    def _sort_new(self) -> None:
        """Move what is new into an array, in which it takes a tenth of the memory."""
        with self._lock:
            new = dict(self._new)
            if not new:
                return
            entries = np.frombuffer(b"".join(map(bytes.__add__, new, new.values())), np.uint64)
            # Other threads still find a digest in one of the two.
            self._added = _merged(self._added, entries.reshape(-1, 4).T)
            for key in new:
                del self._new[key]

    def confirm(self, paths: Sequence[str], digests: Sequence[str]) -> bool:
        """Whether every file still has its digest; files that look changed are read.

        What is no path or no digest, as in a damaged manifest, is not confirmed.
        """
        keys: list[bytes] = []
        for path in paths:
            try:
                keys.append(_key(path, os.stat(path)))  # noqa: PTH116, hot
            except (OSError, TypeError, ValueError):
                return False
        halves = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
        try:
            expected = np.frombuffer(bytes.fromhex("".join(digests)), np.uint64)
            expected = expected.reshape(halves.shape)
        except (TypeError, ValueError):
            return False
        row = np.searchsorted(self._known[0], halves[:, 0])
        row = np.minimum(row, max(0, self._known.shape[1] - 1))
        doubtful = np.arange(len(paths))
        if self._known.shape[1]:
            entries = self._known[:, row].T
            same = (entries == np.hstack([halves, expected])).all(axis=1)
            doubtful = np.flatnonzero(~same)

        def holds(number: int) -> bool:
            try:
                handle = os.open(paths[number], os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                return False
            try:
                return self.digest(paths[number], handle) == digests[number]
            except OSError:
                return False
            finally:
                os.close(handle)

        with ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(holds, doubtful.tolist()))

    def save(self) -> None:
        """Add what is new to the file, which other processes may have extended meanwhile."""
        self._sort_new()
        if self._path is None or not self._added.shape[1]:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            every = _merged(_load(self._path), self._added)
            with atomic_path(self._path) as temporary, temporary.open("wb") as stream:
                np.save(stream, every, allow_pickle=False)
            self._known = every
        self._added = _load(None)


def _merged(first: _Entries, second: _Entries) -> _Entries:
    every = np.concatenate([first, second], axis=1)
    return np.ascontiguousarray(every[:, np.argsort(every[0], kind="stable")])


def _find(entries: _Entries, key: bytes) -> bytes | None:
    if not entries.shape[1]:
        return None
    first, second = np.frombuffer(key, np.uint64)
    row = int(np.searchsorted(entries[0], first))
    while row < entries.shape[1] and entries[0, row] == first:
        if entries[1, row] == second:
            return entries[2:, row].tobytes()
        row += 1
    return None


def _key(path: str, status: os.stat_result) -> bytes:
    identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return xxh3_128(os.fsencode(path) + repr(identity).encode()).digest()


def _load(path: Path | None) -> _Entries:
    """[4, N]: both halves of the key, both of the digest; sorted by the first row."""
    empty = np.zeros((4, 0), np.uint64)
    if path is None:
        return empty
    try:
        known = np.load(path, allow_pickle=False)
    except Exception:  # not there yet, or damaged in whatever way: computed again
        return empty
    return known if known.dtype == np.uint64 and known.ndim == 2 and len(known) == 4 else empty
