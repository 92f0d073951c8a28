"""Where a stream comes from: a recording, raw samples of a pipe, a microphone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.reading import RATES, opened, read_blocks
from multistill.errors import MultistillError, UsageError
from multistill.inference.arrivals import Arrivals, Piece
from multistill.inference.stream_settings import check_range

PIPE = "-"
_STANDARD_INPUT = 0
_PIECE = 0.1  # seconds that are read at a time
_BYTES = 2  # of a raw sample
_CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff")

Stopped: TypeAlias = Callable[[], bool]
"""Whether the stream should end."""


@dataclass(frozen=True)
class Source:
    """What a stream is read from, as it is named on the command line.

    Attributes:
        audio: path of a recording, or `PIPE`; None: the microphone.
        given_rate: of raw samples and of the microphone, in Hz; None: 16 kHz.

    Raises:
        UsageError: there is no source, or two; the rate is implausible, or a recording has its
            own; standard input is a terminal; or the package for microphones is not installed.
        MultistillError: the recording cannot be opened.
    """

    audio: str | None
    microphone: bool
    given_rate: int | None = None

    def __post_init__(self) -> None:
        if self.microphone == (self.audio is not None):
            raise UsageError("a stream has one source; give either --audio or --microphone")
        check_range("rate", self.rate, *RATES)
        if self.microphone and find_spec("sounddevice") is None:
            raise UsageError(
                "--microphone needs the package sounddevice; run "
                "`pip install 'multistill[microphone]'`"
            )
        if self.audio == PIPE and os.isatty(_STANDARD_INPUT):
            raise UsageError(
                "standard input is a terminal; write raw samples into it with a pipe, or name a "
                "recording with --audio"
            )
        if self.audio is not None and self.audio != PIPE:
            if self.given_rate is not None:
                raise UsageError(
                    "--rate is of raw samples, and a recording has its own; leave it out"
                )
            with _named(self.audio), opened(self.audio):
                pass

    @property
    def rate(self) -> int:
        """Of the samples of `pieces`, in Hz."""
        return SAMPLE_RATE if self.given_rate is None else self.given_rate

    def pieces(self, stopped: Stopped, say: Callable[[str], None]) -> Iterator[Piece]:
        """The samples up to their end, or until `stopped`.

        Args:
            say: called with a sentence if samples of the microphone were lost.

        Raises:
            MultistillError: there is no such microphone, or the samples cannot be read, are no
                audio or are incomplete; what came before was given.
        """
        if self.audio is None:
            with _microphone(self.rate) as arrivals:
                yield from arrivals.pieces(stopped)
            if arrivals.lost:
                say(f"{arrivals.lost:.1f} s of sound were lost: the model is too slow for them")
        elif self.audio == PIPE:
            with _named("standard input"):
                yield from _of_pipe(_STANDARD_INPUT, self.rate, stopped)
        else:
            with _named(self.audio):
                yield from _of_file(self.audio, stopped)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except UnusableClipError as error:
        raise MultistillError(f"{name}: {error}") from error


def _of_file(path: str, stopped: Stopped) -> Iterator[Piece]:
    """A recording of any length, at 16 kHz; nothing waits."""
    step = round(_PIECE * SAMPLE_RATE)
    for block in read_blocks(path):
        for start in range(0, len(block), step):
            if stopped():
                return
            yield Piece(block[start : start + step])


def _of_pipe(descriptor: int, rate: int, stopped: Stopped) -> Iterator[Piece]:
    """Raw samples of 16 bits, little-endian, one channel."""
    arrivals = Arrivals(rate)
    threading.Thread(target=_receive, args=(descriptor, rate, arrivals), daemon=True).start()
    try:
        yield from arrivals.pieces(stopped)
    finally:
        arrivals.end()


def _receive(descriptor: int, rate: int, arrivals: Arrivals) -> None:
    try:
        for samples in _raw_samples(descriptor, max(_BYTES, _BYTES * round(_PIECE * rate))):
            if not arrivals.put(samples):
                return
    except OSError as error:
        arrivals.end(UnusableClipError("cannot be read", describe(error)))
    except UnusableClipError as error:
        arrivals.end(error)
    else:
        arrivals.end()


def _raw_samples(descriptor: int, size: int) -> Iterator[npt.NDArray[np.int16]]:
    first, rest = b"", b""
    # Not through sys.stdin, whose lock a thread that waits for samples would keep at the exit.
    while data := os.read(descriptor, size):
        if len(first) < 4:
            first += data[:4]
            if first.startswith(_CONTAINERS):
                raise UnusableClipError(
                    "not raw samples",
                    "it begins as an audio file does; name the file with --audio, or convert it "
                    "with `ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -`",
                )
        data = rest + data
        rest = data[len(data) - len(data) % _BYTES :]
        yield np.frombuffer(data, "<i2", len(data) // _BYTES)
    if not first:
        raise UnusableClipError("empty", "0 bytes")
    if rest:
        raise UnusableClipError("truncated", "an odd number of bytes, and a sample has two")


@contextmanager
def _microphone(rate: int) -> Iterator[Arrivals]:
    """The default microphone while the context is open."""
    arrivals = Arrivals(rate)

    def receive(samples: Any, frames: int, times: Any, status: Any) -> None:
        arrivals.offer(samples[:, 0].copy())

    try:
        import sounddevice

        stream = sounddevice.InputStream(
            samplerate=rate,
            blocksize=round(_PIECE * rate),
            channels=1,
            dtype="float32",
            callback=receive,
            finished_callback=arrivals.end,
        )
        stream.start()
    except OSError as error:
        raise MultistillError(
            f"--microphone: PortAudio cannot be loaded ({describe(error)}); install it, e.g. with "
            "`apt install libportaudio2`"
        ) from error
    except (ValueError, sounddevice.PortAudioError) as error:
        raise MultistillError(
            f"--microphone cannot be opened at {rate} Hz ({describe(error)}); use another one, or "
            "set its rate with --rate"
        ) from error
    try:
        yield arrivals
    finally:
        stream.close()
