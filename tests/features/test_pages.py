"""Pages of mapped files are read before they are used."""

from __future__ import annotations

import os
import time
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from multistill.features.pages import read_at_random, will_need

MB = 1 << 20


def in_memory(file: int, start: int, length: int) -> bool:
    try:
        return os.preadv(file, [bytearray(length)], start, os.RWF_NOWAIT) == length
    except BlockingIOError:
        return False


def test_what_is_asked_for_comes_into_memory_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "states"
    path.write_bytes(os.urandom(8 * MB))
    states = np.memmap(path, np.float16, "r").reshape(-1, 512)
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if in_memory(file, MB, MB):
            pytest.skip("this file system keeps its files in memory")
        will_need(states[:0])
        will_need(states[1030:2040])  # from 1,054,720 to 2,088,960 bytes
        deadline = time.monotonic() + 60
        while not in_memory(file, 1_054_720, 2_088_960 - 1_054_720):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not in_memory(file, 6 * MB, 4096)
    finally:
        os.close(file)


def test_a_read_at_random_reads_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "states"
    path.write_bytes(os.urandom(8 * MB))
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if in_memory(file, MB, MB):
            pytest.skip("this file system keeps its files in memory")
        states = np.memmap(path, np.uint8, "r")
        read_at_random(pa.py_buffer(states))
        assert states[4 * MB] >= 0
        assert in_memory(file, 4 * MB, PAGESIZE)
        assert not in_memory(file, 4 * MB - PAGESIZE, PAGESIZE)
        assert not in_memory(file, 4 * MB + PAGESIZE, PAGESIZE)
    finally:
        os.close(file)
