"""Pages of mapped files are read before they are used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "states"
    path.write_bytes(os.urandom(8 * MB))
    return path


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    """The file, of which nothing is in memory."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        if in_memory(opened, MB, MB):
            pytest.skip("this file system keeps its files in memory")
        yield opened
    finally:
        os.close(opened)


def test_what_is_asked_for_comes_into_memory_and_no_more(path: Path, file: int) -> None:
    states = np.memmap(path, np.float16, "r").reshape(-1, 512)
    will_need(states[:0])
    will_need(states[1030:2040])  # from 1,054,720 to 2,088,960 bytes
    deadline = time.monotonic() + 60
    while not in_memory(file, 1_054_720, 2_088_960 - 1_054_720):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not in_memory(file, 6 * MB, PAGESIZE)


def test_a_read_at_random_reads_nothing_else(path: Path, file: int) -> None:
    states = np.memmap(path, np.uint8, "r")
    read_at_random(pa.py_buffer(states))
    assert states[4 * MB] >= 0
    assert in_memory(file, 4 * MB, PAGESIZE)
    assert not in_memory(file, 4 * MB - PAGESIZE, PAGESIZE)
    assert not in_memory(file, 4 * MB + PAGESIZE, PAGESIZE)
