"""Several speech encoders at once: their states stand side by side, one row per frame of the first.

Encoders with the hop of the first one are cut to the length that all of them have. Of an encoder
with another hop, every frame gets the state whose centre in time is nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multistill.config import OneSpeechEncoderConfig, SpeechEncoderConfig
from multistill.encoders.base import EncoderInfo, EncoderPart, SpeechEncoder, Weights
from multistill.encoders.registry import load_speech, resolve_speech
from multistill.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    import torch


def resolve(config: SpeechEncoderConfig, only: str | None = None) -> dict[str, str | None]:
    """Identities of the weights of all speech encoders, as of `registry.resolve_speech`.

    Args:
        only: title of the only one that is looked at.

    Returns:
        `speech` of the first, `speech_additional_1` and so on of the others.

    Raises:
        MultistillError: a model is neither on this machine nor reachable.
    """
    return {
        key: resolve_speech(part)
        for key, part in zip(_keys(config), config.parts, strict=True)
        if only in {None, part.title}
    }


def load(
    config: SpeechEncoderConfig,
    weights: Mapping[str, str | None],
    device: torch.device,
    parts: Sequence[Mapping[str, Any]] = (),
) -> SpeechEncoder:
    """Load the speech encoder of a job on a device, or all of them side by side, in eval mode.

    Args:
        weights: from `resolve`. An encoder that is not in it is not loaded: its states are zeros.
        parts: description of each encoder (`EncoderPart.to_dict`), where some are not loaded.

    Raises:
        MultistillError: a model cannot be loaded or does not read raw audio.
    """
    encoders = [
        load_speech(part, weights[key], device) if key in weights else _Zeros(parts[number])
        for number, (key, part) in enumerate(zip(_keys(config), config.parts, strict=True))
    ]
    return encoders[0] if len(encoders) == 1 else SideBySide(encoders, config)


def alone(
    config: SpeechEncoderConfig, weights: Mapping[str, str | None], title: str
) -> tuple[SpeechEncoderConfig, dict[str, str | None]]:
    """Settings and weights of one of several speech encoders, with which `load` loads it alone.

    Args:
        weights: from `resolve`.
    """
    [(key, part)] = [
        (key, part)
        for key, part in zip(_keys(config), config.parts, strict=True)
        if part.title == title
    ]
    own = {name: getattr(part, name) for name in OneSpeechEncoderConfig.model_fields}
    return config.model_copy(update={**own, "additional": []}), {"speech": weights[key]}


def _keys(config: SpeechEncoderConfig) -> list[str]:
    return ["speech", *(f"speech_additional_{n + 1}" for n in range(len(config.additional)))]


class _Zeros:
    """In the place of an encoder that nobody reads: as many states, all of them zero."""

    windowed = False

    def __init__(self, part: Mapping[str, Any]) -> None:
        self.hop = int(part["hop"])
        self.minimum_samples = int(part["minimum_samples"])
        self.info = EncoderInfo(str(part["name"]), "none", int(part["dim"]), 0, (), "none")

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.minimum_samples) // self.hop + 1)

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        return [np.zeros((self.frames(len(wave)), self.info.dim), np.float32) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Nothing was computed."""


class SideBySide:
    """Speech encoders as one; the states of each do not depend on the others.

    Args:
        encoders: in the order of `config.parts`; the first decides the frames.
    """

    def __init__(self, encoders: Sequence[SpeechEncoder], config: SpeechEncoderConfig) -> None:
        self._encoders = list(encoders)
        self._config = config
        first = self._encoders[0]
        self.hop = first.hop
        self.minimum_samples = max(encoder.minimum_samples for encoder in self._encoders)
        self.windowed = any(encoder.windowed for encoder in self._encoders)
        self.info = self._describe()

    def frames(self, samples: int) -> int:
        counts = [encoder.frames(samples) for encoder in self._encoders]
        if 0 in counts:
            return 0
        aligned = zip(self._encoders, counts, strict=True)
        return min(count for encoder, count in aligned if encoder.hop == self.hop)

    def encode(self, waves: Sequence[FloatArray]) -> list[AnyArray]:
        parts = [_encode(encoder, waves) for encoder in self._encoders]
        return [
            np.concatenate(
                [
                    states[row][self._rows(encoder, self.frames(len(wave)), len(states[row]))]
                    for encoder, states in zip(self._encoders, parts, strict=True)
                ],
                axis=1,
            )
            for row, wave in enumerate(waves)
        ]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        for encoder in self._encoders:
            encoder.verify(waves)
        self.info = self._describe()

    def _rows(self, encoder: SpeechEncoder, frames: int, available: int) -> slice | np.ndarray:
        """States of an encoder that stand beside the first `frames` frames."""
        if encoder.hop == self.hop:
            return slice(0, frames)
        first = self._encoders[0]
        centres = first.minimum_samples / 2 + first.hop * np.arange(frames)
        nearest = np.floor((centres - encoder.minimum_samples / 2) / encoder.hop + 0.5)
        return nearest.astype(np.int64).clip(0, available - 1)

    def _describe(self) -> EncoderInfo:
        infos = [encoder.info for encoder in self._encoders]
        parts, start = [], 0
        for config, encoder in zip(self._config.parts, self._encoders, strict=True):
            layers, shortest = tuple(config.side_by_side), encoder.minimum_samples
            part = EncoderPart(config.title, start, layers, encoder.hop, shortest, encoder.info)
            parts.append(part)
            start += encoder.info.dim
        revisions = [info.revision or "no weights" for info in infos]
        cosines = [info.bfloat16_cosine for info in infos if info.bfloat16_cosine is not None]
        return EncoderInfo(
            name=" + ".join(part.title for part in parts),
            weights=_weights(infos),
            dim=start,
            params=sum(info.params for info in infos),
            layers=(),
            padding=_padding(infos),
            precision=", ".join(dict.fromkeys(info.precision for info in infos)),
            revision=" + ".join(revisions) if any(info.revision for info in infos) else None,
            bfloat16_cosine=min(cosines, default=None),
            parts=tuple(parts),
        )


def _encode(encoder: SpeechEncoder, waves: Sequence[FloatArray]) -> Sequence[AnyArray]:
    """States of one encoder, in as few batches as its padding allows."""
    if encoder.info.padding != "equal-length":
        return encoder.encode(waves)
    states: dict[int, AnyArray] = {}
    order = sorted(range(len(waves)), key=lambda row: len(waves[row]))
    for _, group in groupby(order, key=lambda row: len(waves[row])):
        rows = list(group)
        states.update(zip(rows, encoder.encode([waves[row] for row in rows]), strict=True))
    return [states[row] for row in range(len(waves))]


def _weights(infos: Sequence[EncoderInfo]) -> Weights:
    """`untrained` as soon as one is a placeholder, so that tables mark it."""
    kinds = {info.weights for info in infos}
    if "untrained" in kinds:
        return "untrained"
    return "pretrained" if "pretrained" in kinds else "none"


def _padding(infos: Sequence[EncoderInfo]) -> Literal["mask", "equal-length", "none"]:
    kinds = {info.padding for info in infos}
    if "mask" in kinds:
        return "mask"
    return "equal-length" if "equal-length" in kinds else "none"
