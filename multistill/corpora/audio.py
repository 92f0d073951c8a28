"""Audio files without decoding them: length, rate, and a digest sampled from the content.

A corpus of a million clips is read header by header, so this is the hot path of
`prepare`: one open file, three short reads for the digest, and the header from the first of
them where it is an everyday wav, by libsndfile otherwise.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_128

SAMPLED = 4096  # bytes
OPEN_LENGTH = 0x7FFF0000  # and above: what programs write that stream and never come back
_FASTEST = 2**31 - 1  # samples a second that the manifest can hold
_MOST_CHANNELS = 1024  # as libsndfile
_CHUNK_HEAD = Struct("<4sI")
_FORMAT = Struct("<HHIIHH")  # kind, channels, rate, bytes a second, bytes a frame, bits
_ENCODINGS = {  # kind 1 is whole numbers, 3 is floating point
    (1, 8): "WAV PCM_U8",
    (1, 16): "WAV PCM_16",
    (1, 24): "WAV PCM_24",
    (1, 32): "WAV PCM_32",
    (3, 32): "WAV FLOAT",
    (3, 64): "WAV DOUBLE",
}


class Header(NamedTuple):
    """What an audio file says of itself."""

    num_samples: int
    sample_rate: int
    channels: int
    encoding: str
    digest: str


def read_header(path: str) -> Header | str:
    """The header of an audio file, or the reason why there is none.

    `digest` is XXH3 of 128 bits in hex over the file's size and its first, middle and last
    4 KiB: the same for copies and moved files, another one for an edited file of any other
    length, at a cost that does not grow with the clip. (It tells recordings apart and is no
    seal: a sample never is, and SHA-256 of it takes as long as all the reading.)
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
        told = plain_wav(head, size) or _told_by_libsndfile(handle)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    finally:
        os.close(handle)
    if isinstance(told, str):
        return told
    return Header(*told, state.hexdigest())


def plain_wav(head: bytes, size: int) -> tuple[int, int, int, str] | str | None:
    """Frames, rate, channels and encoding of an everyday wav file, from its first bytes.

    Reads uncompressed RIFF files whose `data` chunk starts in `head`, several times faster
    than libsndfile; None for anything else, so that libsndfile decides about those. A file of
    `size` bytes that ends before its samples do is a reason: libsndfile would read the part
    that is left without a word.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, form = 12, None
    while at + 8 <= len(head):
        name, length = _CHUNK_HEAD.unpack_from(head, at)
        at += 8
        if name == b"data":
            if form is None or not 0 < length < OPEN_LENGTH:
                return None
            if length > size - at + length % 2:
                return f"is cut short: {size - at} of {length} bytes of samples are there"
            kind, channels, rate, _, block, bits = form
            encoding = _ENCODINGS.get((kind, bits))
            if encoding is None or not channels or block != channels * bits // 8 or not rate:
                return None
            if rate > _FASTEST or channels > _MOST_CHANNELS:
                return f"says {channels} channels of {rate} samples a second, which no audio has"
            frames = length // block
            return (frames, rate, channels, encoding) if frames else None
        if name == b"fmt ":
            if length not in (16, 18) or at + 16 > len(head):
                return None
            form = _FORMAT.unpack_from(head, at)
        at += length + length % 2
    return None


def _told_by_libsndfile(handle: int) -> tuple[int, int, int, str] | str:
    import soundfile

    os.lseek(handle, 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(handle, closefd=False) as file:
            if file.frames <= 0:
                return "holds no samples"
            if not 0 < file.samplerate <= _FASTEST:
                return f"says {file.samplerate} samples a second, which no audio has"
            return file.frames, file.samplerate, file.channels, f"{file.format} {file.subtype}"
    except soundfile.LibsndfileError as error:
        return f"is no audio that libsndfile reads: {error.error_string.rstrip('.')}"


class Signal(NamedTuple):
    """What the samples of one clip say; levels in dB below full scale."""

    peak_dbfs: float
    level_dbfs: float
    silent_share: float
    clipped_share: float


def read_signal(path: str) -> Signal | None:
    """Decode one clip and measure it; None where it cannot be decoded.

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

    def decibel(value: float) -> float:
        return float(20 * np.log10(max(value, 1e-5)))

    return Signal(
        decibel(float(np.abs(samples).max())),
        decibel(float(np.sqrt(np.mean(mono.astype(np.float64) ** 2)))),
        float(np.mean(loudness < 1e-3)),
        float(np.mean(np.abs(samples) >= 32767 / 32768)),
    )


def content_digest(path: str) -> str | None:
    """BLAKE2b of the whole file, None where it cannot be read."""
    state = blake2b(digest_size=16)
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    except OSError:
        return None
    return state.hexdigest()
