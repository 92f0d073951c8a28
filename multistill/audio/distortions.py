"""Distortions of a recording, to test and to train on: pure functions of float32 mono samples.

All take and return [n] at 16 kHz in full scale (1.0), before normalisation. Random ones take a
generator, which `generator_for` seeds by clip and condition, so a clip is distorted alike in every
run. s is the signal without its mean, P(x) the mean of x squared over the clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import soxr

from multistill.audio import SAMPLE_RATE
from multistill.typing import FloatArray

TELEPHONE_RATE = 8_000
TELEPHONE_BAND = (300.0, 3_400.0)
"""Hz, as in ITU-T G.712."""
MU = 255.0
RT60 = 0.5
"""Seconds in which the reverberation falls by 60 dB: a furnished room."""
DIRECT_TO_REVERBERANT_DB = 0.0
QUIETER_DB = -20.0
CLIPPED_SHARE = 0.05
TILT_DB_PER_OCTAVE = -3.0
TILT_CENTRE = 1_000.0
TILT_LOWEST = 50.0
"""Hz; the tilt is constant below."""


def generator_for(condition: str, clip: str) -> np.random.Generator:
    """The random numbers of one condition of one clip, the same in every process."""
    digest = hashlib.blake2b(f"{condition}\0{clip}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def add_noise(samples: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """s + g n with 10 log10(P(s) / P(g n)) = `snr_db`; unchanged where either is silent.

    Args:
        noise: [n].
    """
    signal = _power(samples)
    power = float(np.mean(np.square(noise, dtype=np.float64)))
    if signal <= 0 or power <= 0:
        return samples
    gain = np.sqrt(signal / power * 10 ** (-snr_db / 10))
    return (samples + np.float32(gain) * noise).astype(np.float32)


def white_noise(samples: FloatArray, snr_db: float, random: np.random.Generator) -> FloatArray:
    """Gaussian white noise (`add_noise`)."""
    return add_noise(samples, random.standard_normal(len(samples), dtype=np.float32), snr_db)


def babble(
    samples: FloatArray, voices: Sequence[FloatArray], snr_db: float, random: np.random.Generator
) -> FloatArray:
    """Noise (`add_noise`) that is the sum of voices of equal power.

    Each is repeated from a random place on, until it is as long as the signal.

    Args:
        voices: [m] each, of any lengths; silent ones do not count.
    """
    noise = np.zeros(len(samples), np.float32)
    for voice in voices:
        power = _power(voice)
        if power > 0:
            start = int(random.integers(len(voice)))
            places = (start + np.arange(len(samples))) % len(voice)
            noise += ((voice - voice.mean()) / np.float32(np.sqrt(power)))[places]
    return add_noise(samples, noise, snr_db)


def telephone(samples: FloatArray) -> FloatArray:
    """A narrow-band call: 8 kHz, `TELEPHONE_BAND` and mu-law in 8 bits, and back to 16 kHz.

    The band is a Butterworth filter of order 6 at each edge. The codec is F(x) = sign(x)
    ln(1 + mu |x|) / ln(1 + mu), rounded to 256 steps, and its inverse (ITU-T G.711, in its
    continuous form).
    """
    from scipy.signal import butter, sosfilt

    narrow = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE)
    band = butter(6, TELEPHONE_BAND, "bandpass", fs=TELEPHONE_RATE, output="sos")
    coded = mu_law(np.asarray(sosfilt(band, narrow), np.float32))
    return _of_length(soxr.resample(coded, TELEPHONE_RATE, SAMPLE_RATE), len(samples))


def mu_law(samples: FloatArray) -> FloatArray:
    """Compress, round to 256 steps, and expand; what is beyond full scale is cut."""
    limited = np.clip(samples, -1, 1)
    compressed = np.sign(limited) * np.log1p(MU * np.abs(limited)) / np.log1p(MU)
    steps = np.round((compressed + 1) / 2 * 255) / 255 * 2 - 1
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU).astype(np.float32)


def quieter(samples: FloatArray, gain_db: float = QUIETER_DB) -> FloatArray:
    """x 10^(gain / 20), rounded to 16 bits: what a recorder set too low keeps.

    Encoders get normalised signals, so the gain alone changes nothing for them.
    """
    scaled = samples.astype(np.float64) * 10 ** (gain_db / 20)
    return (np.round(scaled * 32768) / 32768).astype(np.float32)


def clipped(samples: FloatArray, share: float = CLIPPED_SHARE) -> FloatArray:
    """Cut at the level that `share` of the magnitudes |s| exceed."""
    mean = samples.mean(dtype=np.float64)
    level = np.quantile(np.abs(samples - mean), 1 - share)
    return np.clip(samples, np.float32(mean - level), np.float32(mean + level))


def room_response(
    random: np.random.Generator,
    rt60: float = RT60,
    direct_to_reverberant_db: float = DIRECT_TO_REVERBERANT_DB,
) -> FloatArray:
    """Impulse response of a room: the direct sound and Gaussian noise that decays.

    h(0) = 1 and h(t) = g n(t) 10^(-3 t / rt60) after it, g such that the direct sound has
    `direct_to_reverberant_db` over all that follows (the model of Polack, 1988).

    Returns:
        [rt60 seconds] at 16 kHz; the energy of the tail falls by 60 dB over it.
    """
    time = np.arange(1, round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = random.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail *= np.sqrt(10 ** (-direct_to_reverberant_db / 10) / np.square(tail).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)


def reverberant(samples: FloatArray, random: np.random.Generator) -> FloatArray:
    """s in a generated room (`room_response`, `convolved`)."""
    return convolved(samples, room_response(random))


def convolved(samples: FloatArray, response: FloatArray) -> FloatArray:
    """s convolved with an impulse response [m], cut to the clip's length, with the power of s."""
    from scipy.signal import fftconvolve

    wet = fftconvolve(samples, response)[: len(samples)].astype(np.float32)
    power = _power(wet)
    scale = np.sqrt(_power(samples) / power) if power > 0 else 1.0
    return (wet * scale).astype(np.float32)


def tilted(samples: FloatArray, db_per_octave: float = TILT_DB_PER_OCTAVE) -> FloatArray:
    """Spectrum times |H(f)| = (max(f, 50 Hz) / 1 kHz)^(d / (20 log10 2)), d in dB per octave.

    Zero phase, with the power of s: a duller microphone, or a listener around the corner.
    """
    spectrum = np.fft.rfft(samples)
    frequency = np.maximum(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE), TILT_LOWEST)
    gain = (frequency / TILT_CENTRE) ** (db_per_octave / (20 * np.log10(2)))
    changed = np.fft.irfft(spectrum * gain, len(samples)).astype(np.float32)
    power = _power(changed)
    scale = np.sqrt(_power(samples) / power) if power > 0 else 1.0
    return (changed * scale).astype(np.float32)


def first_seconds(samples: FloatArray, seconds: float) -> FloatArray:
    """The beginning of the clip; all of one that is shorter."""
    return samples[: round(seconds * SAMPLE_RATE)]


def wrong_words(
    text: str, share: float, vocabulary: Sequence[str], random: np.random.Generator
) -> str:
    """The transcript with about `share` of its words replaced by others of a vocabulary.

    Of n words, the whole part of `share` n plus a random number below 1 is replaced, so that the
    expected share is exact for short transcripts, too.
    """
    words = text.split()
    count = min(len(words), int(share * len(words) + random.random()))
    for place in random.permutation(len(words))[:count]:
        others = [vocabulary[row] for row in random.integers(len(vocabulary), size=8)]
        words[place] = next((word for word in others if word != words[place]), words[place])
    return " ".join(words)


def _power(samples: FloatArray) -> float:
    """Mean square around the mean."""
    return float(np.var(samples, dtype=np.float64))


def _of_length(samples: FloatArray, length: int) -> FloatArray:
    cut = samples[:length]
    return np.pad(cut, (0, length - len(cut))).astype(np.float32)
