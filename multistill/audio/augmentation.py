"""Distorted copies of recordings to train on: a draw from `CopiesConfig`, applied to samples.

Pure functions of float32 mono samples [n] at 16 kHz in full scale, before normalisation. The
distortions are those of the robustness pack (`multistill.audio.distortions`) with drawn strengths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import soxr

from multistill.audio import SAMPLE_RATE, SUFFIXES
from multistill.audio import distortions as distort
from multistill.audio.reading import read_sound
from multistill.config import CopiesConfig
from multistill.typing import FloatArray

CACHED_SOUNDS = 32
SOUND_SECONDS = 30.0
"""Read of every recording of noise, of a room or of a voice."""
PINK_DB_PER_OCTAVE = -3.0


class Sounds(Sequence[FloatArray]):
    """Recordings that are read when they are first used: [n] at 16 kHz each."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        """A recording.

        Raises:
            UnusableClipError: it cannot be read.
        """
        return _read(self.paths[number])


def augment_wave(
    samples: FloatArray,
    settings: CopiesConfig,
    random: np.random.Generator,
    *,
    noises: Sequence[FloatArray] = (),
    rooms: Sequence[FloatArray] = (),
    voices: Sequence[FloatArray] = (),
) -> FloatArray:
    """A distorted copy [m] of samples [n]; of another length where the speed is drawn.

    Args:
        noises: recorded noise; empty: it is generated.
        rooms: recorded impulse responses; empty: they are generated.
        voices: of other people, for babble.
    """

    def drawn(probability: float) -> bool:
        return bool(random.random() < probability)

    def between(limits: Sequence[float]) -> float:
        return float(random.uniform(limits[0], limits[1]))

    if drawn(settings.speed):
        samples = faster(samples, between(settings.speed_range))
    if drawn(settings.reverberation):
        if len(rooms):
            response = rooms[int(random.integers(len(rooms)))]
            response = response[np.abs(response).argmax() :]  # the direct sound comes first
        else:
            response = distort.room_response(random, between(settings.reverberation_seconds))
        samples = distort.convolved(samples, response)
    if drawn(settings.noise):
        snr_db = between(settings.noise_db)
        kind = settings.noise_kinds[int(random.integers(len(settings.noise_kinds)))]
        if len(noises):
            recorded = noises[int(random.integers(len(noises)))]
            samples = distort.babble(samples, [recorded], snr_db, random)
        elif kind == "babble" and len(voices):
            samples = distort.babble(samples, voices, snr_db, random)
        else:
            noise = random.standard_normal(len(samples), dtype=np.float32)
            if kind == "pink":
                noise = distort.tilted(noise, PINK_DB_PER_OCTAVE)
            samples = distort.add_noise(samples, noise, snr_db)
    if drawn(settings.gain):
        samples = np.clip(distort.quieter(samples, between(settings.gain_db)), -1.0, 1.0)
    if drawn(settings.codec):
        samples = distort.telephone(samples)
    return samples


def faster(samples: FloatArray, factor: float) -> FloatArray:
    """Played `factor` times as fast, by resampling: [n / factor], higher by log2(factor) octaves.

    Speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition").
    """
    return np.asarray(soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE), np.float32)


@cache
def sounds_in(folder: str) -> Sounds:
    """The audio files below a folder, without hidden ones, in the order of their names."""
    return Sounds(sorted(str(path) for path in audio_files(Path(folder))))


def audio_files(folder: Path) -> Iterator[Path]:
    """The audio files below a folder, without hidden ones, in no order; none if there is none."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(root, name)


@lru_cache(CACHED_SOUNDS)
def _read(path: str) -> FloatArray:
    return read_sound(path, max_seconds=SOUND_SECONDS).samples
