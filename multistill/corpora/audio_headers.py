"""Headers, content digests and signal levels of audio files.

`read_header` is the hot path of `prepare`, called once per clip: it opens the file once and
makes three short reads for the digest. The header of a common wav file is parsed from the first
of these reads, any other one is read by libsndfile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from time import perf_counter
from typing import NamedTuple

from xxhash import xxh3_128

SAMPLED = 4096  # bytes
SLOW = 1e-3  # seconds per header from which on threads are used
THREADS = 8
UNKNOWN_LENGTH = 0x7FFF0000  # and above: written by programs that stream and never seek back
_MAX_RATE = 2**31 - 1  # the manifest keeps rates in 32 bits
_MAX_CHANNELS = 1024  # the limit of libsndfile
_CHUNK_HEAD = Struct("<4sI")
_FORMAT = Struct("<HHIIHH")  # format tag, channels, rate, bytes/second, bytes/frame, bits
_ENCODINGS = {  # format tag 1 is integer PCM, 3 is floating point
    (1, 8): "WAV PCM_U8",
    (1, 16): "WAV PCM_16",
    (1, 24): "WAV PCM_24",
    (1, 32): "WAV PCM_32",
    (3, 32): "WAV FLOAT",
    (3, 64): "WAV DOUBLE",
}


class Header(NamedTuple):
    """Header of an audio file, and the digest of its content."""

    num_samples: int
    sample_rate: int
    channels: int
    encoding: str
    digest: str


def read_header(path: str) -> Header | str:
    """Read the header of an audio file.

    `digest` is the 128-bit XXH3, in hex, of the file's size and its first, middle and last
    4 KiB: equal for copies and moved files, different for files of different length, at a cost
    that does not grow with the clip. It distinguishes recordings and does not protect against
    tampering: a sample of the bytes cannot, and its SHA-256 would take as long as the reading.

    Returns:
        The header, or the reason why it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            return "is empty (0 bytes)"
        head = os.read(handle, SAMPLED)
        state = xxh3_128(size.to_bytes(8, "little") + head)
        if size > SAMPLED:
            for start in (max(0, size // 2 - SAMPLED // 2), size - SAMPLED):
                state.update(os.pread(handle, SAMPLED, start))
        fields = parse_wav(head, size) or _read_with_libsndfile(handle)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    finally:
        os.close(handle)
    if isinstance(fields, str):
        return fields
    return Header(*fields, state.hexdigest())


class HeaderReader:
    """Reads the headers of many files, in several threads if the storage is slow.

    Threads hide the latency of network storage. For files in the cache they cost time, because
    each of the short reads releases the GIL: `docs/performance.md` has figures for both cases.
    """

    def __init__(self) -> None:
        self._slow = False

    def read(self, paths: Sequence[str]) -> list[Header | str]:
        """`read_header` for each path, in order."""
        started = perf_counter()
        if self._slow:
            with ThreadPoolExecutor(THREADS) as pool:
                headers = list(pool.map(read_header, paths))
        else:
            headers = [read_header(path) for path in paths]
        seconds = (perf_counter() - started) * (THREADS if self._slow else 1)
        self._slow = seconds > SLOW * len(paths)
        return headers


def parse_wav(head: bytes, size: int) -> tuple[int, int, int, str] | str | None:
    """Frames, rate, channels and encoding of a common wav file, from its first bytes.

    Parses uncompressed RIFF files whose `data` chunk starts in `head`, several times faster
    than libsndfile.

    Args:
        size: bytes of the whole file. A file that ends before its samples do is an error here,
            because libsndfile would silently read the remaining part.

    Returns:
        The fields, the reason why the file is broken, or None for any other format, which is
        left to libsndfile.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    offset, form = 12, None
    while offset + 8 <= len(head):
        name, length = _CHUNK_HEAD.unpack_from(head, offset)
        offset += 8
        if name == b"data":
            if form is None or not 0 < length < UNKNOWN_LENGTH:
                return None
            if length > size - offset + length % 2:
                return f"is truncated: it has {size - offset} of {length} bytes of samples"
            tag, channels, rate, _, block, bits = form
            encoding = _ENCODINGS.get((tag, bits))
            if encoding is None or not channels or block != channels * bits // 8 or not rate:
                return None
            if rate > _MAX_RATE or channels > _MAX_CHANNELS:
                return f"has an invalid header: {channels} channels at {rate} Hz"
            frames = length // block
            return (frames, rate, channels, encoding) if frames else None
        if name == b"fmt ":
            if length not in (16, 18) or offset + 16 > len(head):
                return None
            form = _FORMAT.unpack_from(head, offset)
        offset += length + length % 2
    return None


def _read_with_libsndfile(handle: int) -> tuple[int, int, int, str] | str:
    import soundfile

    os.lseek(handle, 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(handle, closefd=False) as file:
            if file.frames <= 0:
                return "has no samples"
            if not 0 < file.samplerate <= _MAX_RATE:
                return f"has an invalid header: {file.samplerate} Hz"
            return file.frames, file.samplerate, file.channels, f"{file.format} {file.subtype}"
    except soundfile.LibsndfileError as error:
        return f"is not audio that libsndfile can read: {error.error_string.rstrip('.')}"


class Signal(NamedTuple):
    """Levels of one clip, in dB relative to full scale (0 or less), and shares from 0 to 1."""

    peak_dbfs: float
    level_dbfs: float
    silent_share: float
    clipped_share: float


def read_signal(path: str) -> Signal | None:
    """Decode one clip and measure its levels; None if it cannot be decoded.

    `silent_share` is the share of 25 ms frames below -60 dBFS, `clipped_share` the share of
    samples at full scale.
    """
    import numpy as np
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError):
        return None
    mono = samples.mean(axis=1)
    width = min(max(1, rate // 40), len(mono))
    if not len(mono):
        return None
    frames = mono[: len(mono) // width * width].reshape(-1, width)
    loudness = np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1))

    def decibels(value: float) -> float:
        return float(20 * np.log10(max(value, 1e-5)))

    return Signal(
        decibels(float(np.abs(samples).max())),
        decibels(float(np.sqrt(np.mean(mono.astype(np.float64) ** 2)))),
        float(np.mean(loudness < 1e-3)),
        float(np.mean(np.abs(samples) >= 32767 / 32768)),
    )


def content_digest(path: str) -> str | None:
    """BLAKE2b of the whole file, None if it cannot be read."""
    state = blake2b(digest_size=16)
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    except OSError:
        return None
    return state.hexdigest()
