"""Headers and content digests of audio files.

`read_header` is the hot path of `prepare`, called once per clip. The header of a common wav file
is parsed from the first bytes, any other one is read by libsndfile; the digest needs the whole
file, unless it is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import NamedTuple

from multistill.audio import reading
from multistill.audio.digests import THREADS, Digests
from multistill.audio.errors import UnusableClipError, describe

SLOW = 1e-3  # seconds per file from which on threads are used


class Header(NamedTuple):
    """Header of an audio file, and the digest of its content."""

    num_samples: int
    sample_rate: int
    channels: int
    encoding: str
    digest: str


def read_header(path: str, digests: Digests) -> Header | str:
    """Read the header of an audio file.

    Returns:
        The header, or the reason why the file cannot be used.
    """
    try:
        with reading.opened(path) as handle:
            return Header(*reading.read_header(handle), digests.digest(path, handle))
    except UnusableClipError as error:
        return str(error)
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        return f"cannot be read: {describe(error)}"


class HeaderReader:
    """Reads the headers of many files, in several threads if that takes long.

    Threads hide the latency of network storage and share the work of large files. For small files
    in the cache they cost time, because each of the short reads releases the GIL:
    `docs/performance.md` has figures for both cases.
    """

    def __init__(self, digests: Digests | None = None) -> None:
        self._digests = digests or Digests()
        self._slow = False

    def read(self, paths: Sequence[str]) -> list[Header | str]:
        """`read_header` for each path, in order."""
        started = perf_counter()
        if self._slow:
            with ThreadPoolExecutor(THREADS) as pool:
                headers = list(pool.map(lambda path: read_header(path, self._digests), paths))
        else:
            headers = [read_header(path, self._digests) for path in paths]
        seconds = (perf_counter() - started) * (THREADS if self._slow else 1)
        self._slow = seconds > SLOW * len(paths)
        return headers
