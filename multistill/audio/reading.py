"""The one path from an audio file to the mono 16 kHz signal that is measured and encoded.

What a header says is a claim: rate, channels and length are checked against bounds and against
the size of the file before anything is allocated, the sound is read in blocks, and what was
decoded is compared with what the container promised.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from multistill.audio import SAMPLE_RATE, mpeg4
from multistill.audio.containers import read_promise
from multistill.audio.digests import digest_of
from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.levels import ChannelLevels
from multistill.audio.parts import Promise
from multistill.audio.repair import repaired
from multistill.typing import FloatArray

RATES = (1_000, 768_000)
"""Sampling rates in Hz that a recording can have; other numbers are errors in a header."""
MAX_CHANNELS = 1024
"""The limit of libsndfile."""
MAX_SECONDS = 4 * 3600.0
"""Of one clip, however long clips are handled: 0.9 GB of samples at 16 kHz."""

_FRAMES_PER_BYTE = 8192  # no codec reaches it: FLAC of silence has 6,500, Opus 5,760
_BLOCK = 1 << 19  # samples read at a time, of all channels together
_LAST_BLOCK = 4096
_UNKNOWN_FRAMES = 2**62


class Header(NamedTuple):
    """What the header of an audio file says, checked.

    Attributes:
        frames: samples of each channel.
        encoding: container and codec in the words of libsndfile, e.g. `WAV PCM_16`.
    """

    frames: int
    rate: int
    channels: int
    encoding: str


@dataclass(frozen=True)
class Sound:
    """A recording as encoders get it, before normalisation.

    Attributes:
        samples: [n] float32, the mean of the channels at 16 kHz; n is the length in frames times
            16000 / rate, rounded.
        header: of the file.
        cut: the recording is longer and was read up to the limit.
        levels: of the channels before they were mixed, if they were asked for.
    """

    samples: FloatArray
    header: Header
    cut: bool
    levels: ChannelLevels | None


class _Sequential(soundfile.SoundFile):
    """Reads from the beginning to the end only.

    soundfile seeks after each read, which libsndfile cannot do in GSM 6.10, G.721, DWVW and other
    codecs of telephones, and which is of no use here.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def opened(path: str | bytes) -> Iterator[int]:
    """A descriptor of an audio file for reading.

    Args:
        path: bytes are the content of a file.

    Raises:
        UnusableClipError: it cannot be opened, is no regular file, or is empty.
    """
    if isinstance(path, bytes):
        with os.fdopen(os.memfd_create("recording"), "w+b") as file:
            file.write(path)
            file.flush()
            if not path:
                raise UnusableClipError("empty", "0 bytes")
            yield file.fileno()
        return
    try:
        # Without O_NONBLOCK, opening a named pipe waits until somebody writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UnusableClipError("cannot be opened", reason or describe(error)) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableClipError("cannot be opened", "not a regular file")
        if status.st_size == 0:
            raise UnusableClipError("empty", "0 bytes")
        yield handle
    finally:
        os.close(handle)


def read_header(handle: int) -> Header:
    """Read and check the header of an open file.

    Raises:
        UnusableClipError: it is not audio, is truncated, or its header is implausible.
    """
    size = os.fstat(handle).st_size
    promise = read_promise(handle, size)
    if promise.header is not None:
        return _checked(Header(*promise.header), size)
    with _source(handle) as source:
        header = _header(source, size)
        if header.frames < _UNKNOWN_FRAMES:
            return header
        frames = sum(len(block) for block in _blocks(source, round(MAX_SECONDS * header.rate)))
        return header._replace(frames=frames)


def read_sound(
    path: str | bytes,
    *,
    max_seconds: float = MAX_SECONDS,
    digest: str | None = None,
    measured: bool = False,
    first_channel: bool = False,
) -> Sound:
    """Decode a file and mix and resample it to mono at 16 kHz.

    Memory and time are bounded by `max_seconds` and by the bytes of the file.

    Args:
        path: bytes are the content of a file.
        max_seconds: what is longer is read up to this limit.
        digest: of the content that the file must have (`digests.digest_of`); None: any.
        measured: measure the levels of the channels, too.
        first_channel: read this channel only, in place of the mean of all.

    Raises:
        UnusableClipError: the file is missing, corrupt, empty, truncated, not finite, or it is
            not the file with this digest.
    """
    with opened(path) as handle:
        before = os.fstat(handle)
        if digest is not None and digest_of(handle) != digest:
            raise _changed()
        promise = read_promise(handle, before.st_size)
        with _source(handle) as source:
            size = before.st_size
            sound = _decode(source, size, promise, max_seconds, measured, first_channel)
        after = os.fstat(handle)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _changed()
    return sound


def read_blocks(path: str) -> Iterator[FloatArray]:
    """A file of any length as mono samples [n] at 16 kHz, block by block, in bounded memory.

    Raises:
        UnusableClipError: as of `read_sound`; what is wrong further on, after the blocks before.
    """
    with opened(path) as handle:
        size = os.fstat(handle).st_size
        promise = read_promise(handle, size)
        with _source(handle) as source:
            header = _header(source, size)
            resample = Resampler(header.rate)
            frames = 0
            for block in _blocks(source, sys.maxsize):
                frames += len(block)
                refuse_not_finite(block)
                yield resample(_mono(block))
            if not frames:
                raise UnusableClipError("empty", "no samples")
            yield resample.rest()
            _compare(frames, header, promise, source)


def _decode(
    source: Any,
    size: int,
    promise: Promise,
    max_seconds: float,
    measured: bool,
    first_channel: bool,
) -> Sound:
    header = _header(source, size)
    levels = ChannelLevels(header.channels) if measured else None
    limit = round(min(max_seconds, MAX_SECONDS) * header.rate)
    # One frame more than allowed shows that there is more, whatever the header says.
    blocks = _blocks(source, limit + 1)
    samples, frames = _mix(blocks, header.rate, limit, levels, first_channel)
    if frames <= limit:
        _compare(frames, header, promise, source)
    header = header._replace(frames=max(frames, _known(header, 0)))
    return Sound(samples, header, frames > limit, levels)


def convert(samples: npt.NDArray[np.generic], rate: int, max_seconds: float = MAX_SECONDS) -> Sound:
    """Samples in memory as `read_sound` gives those of a file.

    Args:
        samples: [n] or [n, channels]; integers have the full scale of their type.
        rate: in Hz.
        max_seconds: what is longer is cut at this limit.

    Raises:
        UnusableClipError: there are none, they are not finite, or shape or rate are implausible.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fiu":
        raise UnusableClipError(
            "not audio",
            f"an array of {samples.dtype} with the shape {list(samples.shape)}, and samples are "
            "numbers [n] or [n, channels]",
        )
    several = samples[:, None] if samples.ndim == 1 else samples
    header = _checked(Header(len(several), rate, several.shape[1], f"array {samples.dtype}"), None)
    limit = round(min(max_seconds, MAX_SECONDS) * rate)
    step = max(1, _BLOCK // header.channels)
    blocks = (to_float32(several[i : i + step]) for i in range(0, min(len(several), limit), step))
    mono, _ = _mix(blocks, rate, limit, None, False)
    return Sound(mono, header, len(several) > limit, None)


def to_float32(block: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Samples as float32; integers are divided by the full scale of their type."""
    if block.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite samples are refused
            return block.astype(np.float32, copy=False)
    full = 2.0 ** (8 * block.dtype.itemsize - 1)
    middle = full if block.dtype.kind == "u" else 0.0
    return ((block.astype(np.float64) - middle) / full).astype(np.float32)


def _mix(
    blocks: Iterable[npt.NDArray[np.float32]],
    rate: int,
    limit: int,
    levels: ChannelLevels | None,
    first_channel: bool,
) -> tuple[FloatArray, int]:
    """Mono samples at 16 kHz of the first `limit` frames of blocks, and the frames of all.

    Args:
        blocks: [n, channels] each.

    Raises:
        UnusableClipError: there are no samples, or they are not finite.
    """
    resample = Resampler(rate)
    parts: list[FloatArray] = []
    frames = 0
    for block in blocks:
        frames += len(block)
        block = block[: len(block) - max(0, frames - limit)]
        refuse_not_finite(block)
        if levels is not None:
            levels.add(block)
        parts.append(resample(block[:, 0] if first_channel else _mono(block)))
    if not frames:
        raise UnusableClipError("empty", "no samples")
    parts.append(resample.rest())
    return np.concatenate(parts), frames


def _mono(block: npt.NDArray[np.float32]) -> FloatArray:
    """The mean of the channels of a block [n, channels]."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore"):  # infinite samples are refused
        return block.mean(axis=1)


def refuse_not_finite(samples: FloatArray) -> None:
    """Refuse samples with NaN or infinite values.

    Raises:
        UnusableClipError: there are some.
    """
    if not np.isfinite(samples).all():
        raise UnusableClipError("not finite", "it holds samples that are NaN or infinite")


def _compare(frames: int, header: Header, promise: Promise, source: Any) -> None:
    """Compare what was decoded with what was promised.

    Raises:
        UnusableClipError: something is missing.
    """
    promised, slack = promise.frames, promise.slack
    # For MPEG, libsndfile estimates the length.
    if promised is None and source.subtype[:5] != "MPEG_":
        promised, slack = _known(header, frames), 0
    if promised is not None and frames + slack < promised:
        raise UnusableClipError(
            "truncated",
            f"{frames / header.rate:.2f} of {promised / header.rate:.2f} s can be decoded",
        )


def _known(header: Header, default: int) -> int:
    return header.frames if header.frames < _UNKNOWN_FRAMES else default


class Resampler:
    """Resample a signal block by block to 16 kHz with soxr; unchanged if it is at 16 kHz already.

    The result does not depend on the blocks. soxr's work per sample is bounded for every rate,
    where a polyphase filter needs a table of rate x 16000 values if they share no factor.
    """

    def __init__(self, rate: int) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "HQ")

    def __call__(self, samples: npt.NDArray[np.float32], *, last: bool = False) -> FloatArray:
        """Raises UnusableClipError: the result, or a mean of channels before, overflows."""
        if self._stream is not None:
            samples = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        if not np.isfinite(samples).all():
            raise UnusableClipError("not finite", "its samples are too large for float32")
        return samples

    def rest(self) -> FloatArray:
        """What is left at the end of the signal."""
        return self(np.zeros(0, np.float32), last=True)


@contextmanager
def _source(handle: int) -> Iterator[Any]:
    """The file, opened by libsndfile, or by FFmpeg.

    Raises:
        UnusableClipError: it is not audio, or what reading it raises.
    """
    os.lseek(handle, 0, os.SEEK_SET)
    source: Any
    try:
        if os.pread(handle, 8, 0)[4:] == b"ftyp":
            if find_spec(mpeg4.PACKAGE) is None:
                raise UnusableClipError(
                    "not supported",
                    "sound in MPEG-4 files (M4A, AAC) is read with the package av; run "
                    "`pip install 'multistill[m4a]'`, or save it as FLAC",
                )
            source = mpeg4.Mpeg4Sound(handle)
        else:
            file = repaired(handle)
            source = _Sequential(handle, closefd=False) if file is None else _Sequential(file)
    except soundfile.LibsndfileError as error:
        raise UnusableClipError(
            "not audio", f"libsndfile says: {error.error_string.strip().rstrip('.')}"
        ) from error
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableClipError("cannot be decoded", describe(error)) from error
    with source:
        yield source


def _blocks(source: Any, limit: int) -> Iterator[npt.NDArray[np.float32]]:
    """The sound as blocks [n, channels], up to so many frames.

    Raises:
        UnusableClipError: it cannot be decoded.
    """
    most = max(1, _BLOCK // source.channels)
    done = 0
    while done < limit:
        # libsndfile also fills what it does not read, so no more than announced is asked for; a
        # last short block shows that there is no more.
        step = min(most, source.frames - done if source.frames > done else _LAST_BLOCK)
        try:
            block = source.read(min(step, limit - done), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            reason = "the data are damaged or incomplete"
            with suppress(AttributeError):
                reason = error.error_string.strip().rstrip(".") or reason  # type: ignore[union-attr]
            raise UnusableClipError(
                "cannot be decoded", f"after {done / source.samplerate:.2f} s: {reason}"
            ) from error
        if not len(block):
            return
        done += len(block)
        yield block


def _header(source: Any, size: int) -> Header:
    encoding = f"{source.format} {source.subtype}"
    return _checked(Header(source.frames, source.samplerate, source.channels, encoding), size)


def _checked(header: Header, size: int | None) -> Header:
    """The header if it is plausible.

    Args:
        size: of the file in bytes; None: there is no file.

    Raises:
        UnusableClipError: it is not.
    """
    if not RATES[0] <= header.rate <= RATES[1] or not 0 < header.channels <= MAX_CHANNELS:
        raise UnusableClipError(
            "invalid header",
            f"{header.channels} channels at {header.rate} Hz; rates from {RATES[0]} to "
            f"{RATES[1]} Hz and up to {MAX_CHANNELS} channels are read",
        )
    if header.frames <= 0:
        raise UnusableClipError("empty", "no samples")
    if size is not None and _known(header, 0) > size * _FRAMES_PER_BYTE:
        raise UnusableClipError(
            "invalid header", f"{header.frames} samples cannot be in {size} bytes"
        )
    return header


def _changed() -> UnusableClipError:
    return UnusableClipError(
        "changed since the prepare stage read it", "run the same command again"
    )
