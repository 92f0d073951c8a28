"""Sound in MPEG-4 files (M4A, MP4), which libsndfile does not read, by FFmpeg (PyAV)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

PACKAGE = "av"


class Mpeg4Sound:
    """The first sound of an open file, with what reading uses of `soundfile.SoundFile`.

    Attributes:
        frames: that the file states; none beyond them is decoded.

    Raises:
        ValueError: there is no sound, its length is not stated, or the file is damaged.
    """

    format = "MPEG-4"

    def __init__(self, handle: int) -> None:
        import av

        os.lseek(handle, 0, os.SEEK_SET)
        self._file = os.fdopen(os.dup(handle), "rb")
        try:
            self._container = av.open(self._file, format="mov")
            if not self._container.streams.audio:
                raise ValueError("the file holds no sound")
            stream = self._container.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("its sound is of a kind that FFmpeg does not decode")
            if not stream.duration or stream.time_base is None:
                raise ValueError("the file does not say how long its sound is")
            self.samplerate, self.channels = int(stream.rate), int(stream.channels)
            self.frames = round(stream.duration * stream.time_base * self.samplerate)
            self.subtype = stream.codec_context.name.upper()
            self._decoded = self._container.decode(stream)
            self._to_float32 = av.AudioResampler(format="fltp", rate=self.samplerate)
        except BaseException as error:
            self._file.close()
            if isinstance(error, av.FFmpegError):  # also one that is a MemoryError
                raise ValueError(f"FFmpeg says: {error.strerror}") from error
            raise
        self._left = self.frames
        self._rest: npt.NDArray[np.float32] = np.zeros((0, self.channels), np.float32)

    def read(self, frames: int, dtype: str, always_2d: bool) -> npt.NDArray[np.float32]:
        """Up to so many samples [n, channels] float32; none at the end.

        Raises:
            RuntimeError: they cannot be decoded.
        """
        import av

        while not len(self._rest) and self._left:
            try:
                decoded = next(self._decoded, None)
                if decoded is None:
                    break
                parts = [each.to_ndarray().T for each in self._to_float32.resample(decoded)]
                self._rest = np.concatenate([self._rest, *parts])
            except (av.FFmpegError, ValueError) as error:
                raise RuntimeError("the data are damaged or incomplete") from error
        block = self._rest[: min(frames, self._left)]
        self._rest = self._rest[len(block) :]
        self._left -= len(block)
        return block

    def __enter__(self) -> Mpeg4Sound:
        return self

    def __exit__(self, *error: Any) -> None:
        self._container.close()
        self._file.close()
