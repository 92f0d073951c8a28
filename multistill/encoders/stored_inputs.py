"""What fills the store for encoders that are trained from their input: waves and token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from multistill.config import OneSpeechEncoderConfig, TextEncoderConfig
from multistill.encoders.base import EncoderInfo, Weights
from multistill.encoders.tokenizers import Tokenizer
from multistill.typing import AnyArray, FloatArray

WAVE_HOP = 320
"""Samples in one stored row: 50 rows a second, as many as most encoders make states."""
WAVE_COLUMNS = 1 + WAVE_HOP
PEAK = 32767


class StoredWaves:
    """Keeps waves as 16-bit integers in rows of 20 ms, in place of an encoder's states.

    A row is the number of its samples and `WAVE_HOP` samples, zero after the last one. The largest
    of a clip is `PEAK`; `decode_waves` scales the clip back to unit variance.

    Args:
        revision: identity of the weights of the encoder that reads the waves.
    """

    hop = WAVE_HOP
    minimum_samples = 400
    windowed = False

    def __init__(
        self, config: OneSpeechEncoderConfig, weights: Weights, revision: str | None
    ) -> None:
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=WAVE_COLUMNS,
            params=0,
            layers=(),
            padding="none",
            revision=revision,
            stored="waves",
        )

    def frames(self, samples: int) -> int:
        return -(-samples // WAVE_HOP)

    def encode(self, waves: Sequence[FloatArray]) -> list[AnyArray]:
        return [encode_wave(wave) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Nothing to compare: waves are kept in one precision."""


def encode_wave(wave: FloatArray) -> AnyArray:
    """Rows [frames, WAVE_COLUMNS] int16 of a wave [samples]."""
    frames = -(-len(wave) // WAVE_HOP)
    peak = float(np.abs(wave).max(initial=0.0))
    samples = np.zeros(frames * WAVE_HOP, np.int16)
    if peak:
        samples[: len(wave)] = np.rint(wave * (PEAK / peak))
    rows = np.empty((frames, WAVE_COLUMNS), np.int16)
    rows[:, 0] = WAVE_HOP
    rows[-1, 0] = len(wave) - (frames - 1) * WAVE_HOP
    rows[:, 1:] = samples.reshape(frames, WAVE_HOP)
    return rows


def decode_waves(rows: Tensor, mask: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    """Waves of stored rows: zero mean and unit variance, as `features.decode` gives them.

    Args:
        rows: [B, T, WAVE_COLUMNS], int16.
        mask: [B, T] bool, False at padding.
        minimum: samples that the waves have at least.

    Returns:
        waves [B, samples] float32, zero after the last sample of a clip, and samples [B] of each.
    """
    lengths = (rows[..., 0].long() * mask).sum(dim=1)
    samples = rows[..., 1:].float().flatten(1)
    short = minimum - samples.shape[1]
    if short > 0:
        samples = torch.nn.functional.pad(samples, (0, short))
    inside = torch.arange(samples.shape[1], device=rows.device) < lengths[:, None]
    samples = samples * inside
    count = lengths.clamp_min(1)[:, None]
    centred = (samples - samples.sum(dim=1, keepdim=True) / count) * inside
    variance = centred.square().sum(dim=1, keepdim=True) / count
    # Silence stays silence.
    return centred / variance.clamp_min(1e-7).sqrt(), lengths


class StoredTokens:
    """Keeps the token ids of transcripts as int32, in place of an encoder's states.

    Args:
        limit: tokens of the longest text that is kept whole.
        revision: identity of the weights of the encoder that reads the tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        limit: int,
        config: TextEncoderConfig,
        weights: Weights,
        revision: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=1,
            params=0,
            layers=(),
            padding="none",
            revision=revision,
            stored="tokens",
        )

    def is_cut(self, text: str) -> bool:
        return bool(text.strip()) and self._tokenizer(text, self._limit).cut

    def encode(self, texts: Sequence[str]) -> list[AnyArray]:
        return [
            np.array(
                self._tokenizer(text, self._limit).ids if text.strip() else [], np.int32
            ).reshape(-1, 1)
            for text in texts
        ]
