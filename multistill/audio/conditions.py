"""The conditions of the robustness pack, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multistill.audio import distortions
from multistill.typing import FloatArray

PACK = 1
"""Version of the pack: raise it when a condition is added or changes any sample or word."""

VOICES = 6
"""Speakers in babble, where the test clips have as many others."""

Kind = Literal["audio", "text"]
Change = Callable[[FloatArray, Sequence[FloatArray], np.random.Generator], FloatArray]
"""Samples, voices and random numbers to samples."""


@dataclass(frozen=True)
class Condition:
    """One way in which the test clips are made harder.

    Attributes:
        title: for tables.
        kind: which input it changes.
        change: of the samples; None where it changes the transcript or the channels.
        seconds: how much of the clip is left; None: all.
        wrong: share of words that are wrong; 1 where the transcript is missing.
    """

    name: str
    title: str
    kind: Kind = "audio"
    change: Change | None = None
    seconds: float | None = None
    wrong: float = 0.0

    @property
    def needs_voices(self) -> bool:
        return self.name.startswith("babble")

    @property
    def first_channel(self) -> bool:
        return self.name == ONE_CHANNEL


ONE_CHANNEL = "one-channel"
MISSING = "text-missing"


def _white(snr_db: float) -> Change:
    return lambda samples, voices, random: distortions.white_noise(samples, snr_db, random)


def _babble(snr_db: float) -> Change:
    return lambda samples, voices, random: distortions.babble(samples, voices, snr_db, random)


def _first(seconds: float) -> Change:
    return lambda samples, voices, random: distortions.first_seconds(samples, seconds)


def _fixed(function: Callable[[FloatArray], FloatArray]) -> Change:
    return lambda samples, voices, random: function(samples)


def _reverberant(
    samples: FloatArray, voices: Sequence[FloatArray], random: np.random.Generator
) -> FloatArray:
    return distortions.reverberant(samples, random)


CONDITIONS: Mapping[str, Condition] = {
    each.name: each
    for each in (
        Condition("white-20", "white noise, 20 dB", change=_white(20)),
        Condition("white-10", "white noise, 10 dB", change=_white(10)),
        Condition("babble-20", "babble, 20 dB", change=_babble(20)),
        Condition("babble-10", "babble, 10 dB", change=_babble(10)),
        Condition("telephone", "telephone, mu-law", change=_fixed(distortions.telephone)),
        Condition("quieter", "20 dB quieter", change=_fixed(distortions.quieter)),
        Condition("clipped", "clipped, 5 %", change=_fixed(distortions.clipped)),
        Condition("reverberant", "reverberation, 0.5 s", change=_reverberant),
        Condition("tilted", "tilt, -3 dB an octave", change=_fixed(distortions.tilted)),
        Condition(ONE_CHANNEL, "first channel only"),
        Condition("first-3s", "first 3 s only", change=_first(3), seconds=3),
        Condition("first-1s", "first 1 s only", change=_first(1), seconds=1),
        Condition(MISSING, "text missing", "text", wrong=1.0),
        Condition("text-10", "10 % of words wrong", "text", wrong=0.1),
        Condition("text-30", "30 % of words wrong", "text", wrong=0.3),
    )
}
