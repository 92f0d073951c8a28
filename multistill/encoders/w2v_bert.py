"""W2v-BERT 2.0: a conformer on log mel filter banks, two of 10 ms side by side in each frame.

Published by the Seamless team (Barrault et al., 2023, arXiv:2312.05187). The filter banks are those
of the `SeamlessM4TFeatureExtractor` of transformers, as Kaldi computes them: each band is scaled to
zero mean and unit variance over the wave. The level of a recording has no influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multistill.audio import SAMPLE_RATE
from multistill.config import OneSpeechEncoderConfig
from multistill.encoders.base import SPEECH_SECTION, EncoderInfo, Weights
from multistill.encoders.layers import LayerSelector
from multistill.encoders.speech import ComparedWithFloat32, uses_bfloat16
from multistill.errors import MultistillError
from multistill.typing import FloatArray

BANDS, STRIDE = 80, 2
WINDOW, BANK_HOP = 400, 160
"""Samples of one filter bank frame, and from one to the next."""


class W2vBert(ComparedWithFloat32):
    """States of a `Wav2Vec2BertModel` of transformers, 50 a second, with an attention mask.

    T = floor((samples - 560) / 320) + 1 states: a state is of two whole filter bank frames, and
    of an odd number of them the last is left out, as the library masks it.

    Args:
        model: a `transformers` Wav2Vec2BertModel; its adapter is removed.
        revision: from `hub.resolve`.

    Raises:
        MultistillError: the model reads other filter banks.
        UsageError: the model lacks one of the configured layers.
    """

    windowed = True
    minimum_samples = WINDOW + BANK_HOP * (STRIDE - 1)
    hop = BANK_HOP * STRIDE

    def __init__(
        self,
        model: Any,
        config: OneSpeechEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
    ) -> None:
        from transformers import SeamlessM4TFeatureExtractor

        settings = model.config
        if settings.feature_projection_input_dim != BANDS * STRIDE:
            raise MultistillError(
                f"{SPEECH_SECTION}.model: `{config.model}` reads "
                f"{settings.feature_projection_input_dim} values a frame, and W2v-BERT 2.0 reads "
                f"{STRIDE} times {BANDS} filter banks; use a model of that size"
            )
        settings.apply_spec_augment = False
        model.adapter = model.intermediate_ffn = None
        self._selector = LayerSelector(
            model, "layers", config.layers, config.combine, f"{SPEECH_SECTION}.layers"
        )
        self._extract = SeamlessM4TFeatureExtractor(
            feature_size=BANDS, num_mel_bins=BANDS, sampling_rate=SAMPLE_RATE, stride=STRIDE
        )
        self._model = model.eval().to(device)
        self._device = device
        self._bfloat16 = uses_bfloat16(config, device)
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._selector.width(settings.hidden_size),
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=self._selector.indices,
            padding="mask",
            precision="bfloat16" if self._bfloat16 else "float32",
            revision=revision,
            layer_params=self._selector.count_parameters(),
        )

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.minimum_samples) // self.hop + 1)

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        banks = self._extract(
            [np.asarray(wave) for wave in waves], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        inputs = banks["input_features"].to(self._device, torch.float32)
        mask = banks["attention_mask"].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            output = self._model(inputs, attention_mask=mask).last_hidden_state
        states = self._selector.gather(output).cpu().numpy()
        return [states[row, : self.frames(len(wave))] for row, wave in enumerate(waves)]
