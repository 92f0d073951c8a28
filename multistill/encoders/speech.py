"""Speech encoders: log-mel, the wav2vec2 family, and an untrained stand-in of that family.

All of them make 50 states a second from 16 kHz: a receptive field of 400 samples moved
by 320, so T = floor((samples - 400) / 320) + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multistill.config import SpeechEncoderConfig
from multistill.encoders.base import SAMPLE_RATE, EncoderInfo, SpeechEncoder, Weights
from multistill.encoders.hub import load_model
from multistill.encoders.layers import LayerSelector
from multistill.errors import MultistillError
from multistill.typing import FloatArray

WHERE = "features.speech"
STAND_IN_SEED = 20231

LOWEST_COSINE = 0.99
"""Of bfloat16 with float32 states; below it bfloat16 is refused. Rounding alone costs 1e-4."""


class LogMel:
    """Log mel energies, 80 bands: no weights, a real baseline.

    The frames are those of wav2vec2 (25 ms every 20 ms, no padding at the ends), so one
    clip has as many states here as there.
    """

    bands = 80
    spread = 3.0  # typical deviation of log energies: brings the states near unit variance
    minimum_samples = 400
    hop = 320
    windowed = False

    def __init__(self) -> None:
        from torchaudio.transforms import MelSpectrogram

        self._mel = MelSpectrogram(
            sample_rate=SAMPLE_RATE,
            n_fft=self.minimum_samples,
            hop_length=self.hop,
            n_mels=self.bands,
            center=False,
            norm="slaney",
            mel_scale="slaney",
        )
        self.facts = EncoderInfo("log-mel", "none", self.bands, 0, (), "none")

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.minimum_samples) // self.hop + 1)

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        return [self._one(torch.from_numpy(wave.copy())) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Always float32."""

    def _one(self, wave: Tensor) -> FloatArray:
        states = torch.log(self._mel(wave).T.clamp_min(1e-6))
        # One mean for the clip: the microphone's gain goes, the spectrum's shape and range
        # stay. Per band normalisation was worse on EMO-DB (docs/features.md).
        return np.ascontiguousarray(((states - states.mean()) / self.spread).numpy())


class Wav2Vec2Family:
    """wav2vec2, HuBERT, WavLM, data2vec-audio and their kin in transformers.

    Layer-norm feature extractors get the attention mask. Group-norm ones take statistics
    over time, padding included, with or without a mask; they get batches of equal length.
    """

    windowed = True

    def __init__(
        self,
        model: Any,
        config: SpeechEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
        bfloat16: bool = False,
    ) -> None:
        settings = model.config
        if not hasattr(settings, "conv_kernel") or not hasattr(model, "encoder"):
            raise MultistillError(
                f"{WHERE}.model: `{config.model}` ({settings.model_type}) does not read raw "
                "audio as wav2vec2 does; use a wav2vec2, HuBERT, WavLM or data2vec-audio model"
            )
        settings.apply_spec_augment = False
        if getattr(model, "adapter", None) is not None:
            model.adapter = None
        self._kernels = tuple(settings.conv_kernel)
        self._strides = tuple(settings.conv_stride)
        self._kept = LayerSelector(
            model, "layers", config.layers, config.combine, f"{WHERE}.layers"
        )
        self._model = model.eval().to(device)
        self._device = device
        self._bfloat16 = bfloat16
        self.hop = math.prod(self._strides)
        self.minimum_samples = self._receptive_field()
        equal = settings.feat_extract_norm == "group"
        self.facts = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._kept.width(settings.hidden_size),
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=self._kept.indices,
            padding="equal-length" if equal else "mask",
            precision="bfloat16" if bfloat16 else "float32",
            revision=revision,
        )

    def _receptive_field(self) -> int:
        field, jump = 1, 1
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            field += (kernel - 1) * jump
            jump *= stride
        return field

    def frames(self, samples: int) -> int:
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            samples = (samples - kernel) // stride + 1
            if samples <= 0:
                return 0
        return samples

    def verify(self, waves: Sequence[FloatArray]) -> None:
        if not self._bfloat16 or not waves:
            return
        worst = 1.0
        for wave in waves:
            self._bfloat16 = False
            [exact] = self.encode([wave])
            self._bfloat16 = True
            [rough] = self.encode([wave])
            norms = float(np.linalg.norm(exact) * np.linalg.norm(rough))
            worst = min(worst, float((exact * rough).sum()) / max(norms, 1e-12))
        if not worst >= LOWEST_COSINE:
            raise MultistillError(
                f"{WHERE}.precision: bfloat16 changes the states of `{self.facts.name}` too much "
                f"(cosine {worst:.4f} with float32, at least {LOWEST_COSINE} is asked); "
                "use `precision: float32`"
            )
        self.facts = replace(self.facts, bfloat16_cosine=round(worst, 6))

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        lengths = [len(wave) for wave in waves]
        longest = max(lengths)
        # Filled in NumPy: waves from Ray's object store are read-only, which torch dislikes.
        padded = np.zeros((len(waves), longest), np.float32)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = wave
        mask = None
        if min(lengths) < longest:
            if self.facts.padding == "equal-length":
                raise ValueError("a group-norm encoder must be given waves of equal length")
            mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
            mask = mask.to(self._device)
        inputs = torch.from_numpy(padded).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            output = self._model(inputs, attention_mask=mask).last_hidden_state
        states = self._kept.gather(output).cpu().numpy()
        return [states[row, : self.frames(length)] for row, length in enumerate(lengths)]


def untrained_wav2vec2() -> Any:
    """A small layer-norm wav2vec2 with random weights, the same on every machine."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    settings = Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=(64,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(STAND_IN_SEED)
        return Wav2Vec2Model(settings)


def load_speech(
    config: SpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    """The speech encoder of a job, in eval mode on the device.

    Args:
        resolved: from `hub.resolve`.
    """
    if config.model == "log-mel":
        return LogMel()
    bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    if config.model == "untrained-wav2vec2":
        return Wav2Vec2Family(
            untrained_wav2vec2(),
            config,
            "untrained",
            revision=None,
            device=device,
            bfloat16=bfloat16,
        )
    model = load_model(config.model, resolved, WHERE)
    return Wav2Vec2Family(
        model, config, "pretrained", revision=resolved, device=device, bfloat16=bfloat16
    )
