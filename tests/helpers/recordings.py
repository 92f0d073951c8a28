"""Recordings in every container that libsndfile writes, and headers that say what is not so."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000

STATED = [
    *(("WAV", codec) for codec in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    *(("WAV", codec) for codec in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")),
    *(("WAV", codec) for codec in ("NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")),
    *(("WAVEX", codec) for codec in ("PCM_16", "PCM_24", "FLOAT", "ULAW")),
    *(("RF64", codec) for codec in ("PCM_16", "PCM_24", "FLOAT")),
    *(("W64", codec) for codec in ("PCM_16", "PCM_24", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *(("AIFF", codec) for codec in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610")),
    *(("AIFF", codec) for codec in ("DWVW_16", "DWVW_24")),
    *(("AU", codec) for codec in ("PCM_16", "FLOAT", "ULAW", "G721_32", "G723_24", "G723_40")),
    *(("CAF", codec) for codec in ("PCM_16", "FLOAT", "ALAC_16")),
    *(("NIST", codec) for codec in ("PCM_16", "ULAW")),
    *(("SVX", codec) for codec in ("PCM_16",)),
    *(("VOC", codec) for codec in ("PCM_16", "ULAW")),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
"""Containers and codecs whose files say how long they are."""

UNSEEKABLE = [("WAV", "GSM610"), ("W64", "GSM610"), ("AIFF", "GSM610"), ("WAV", "G721_32")]


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """[frames, channels], or [frames] of one channel."""
    sound = np.random.default_rng(seed).normal(0, 0.1, (frames, channels))
    return sound[:, 0] if channels == 1 else sound


def encoded(folder: Path, container: str, codec: str, sound: np.ndarray, rate: int = RATE) -> bytes:
    """The bytes of a file that libsndfile writes."""
    path = folder / "encoded"
    soundfile.write(path, sound, rate, format=container, subtype=codec)
    return path.read_bytes()


def chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
    stated = len(data) if length is None else length
    return name + struct.pack("<I", stated) + data + b"\0" * (len(data) % 2)


def wav(
    sound: np.ndarray,
    *,
    rate: int = RATE,
    channels: int = 1,
    length: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A 16-bit wav file with any rate, number of channels and stated length of its samples."""
    data = (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()
    block = 2 * channels % 2**16
    fields = (1, channels, rate, rate * block % 2**32, block, 16)
    form = chunk(b"fmt ", struct.pack("<HHIIHH", *fields))
    body = b"WAVE" + form + before + chunk(b"data", data, length)
    return b"RIFF" + struct.pack("<I", len(body)) + body
