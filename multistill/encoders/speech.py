"""Speech encoders: log-mel energies and the wav2vec2 family.

All of them make 50 states per second from 16 kHz: a receptive field of 400 samples every 320
samples, so T = floor((samples - 400) / 320) + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multistill.audio import SAMPLE_RATE
from multistill.config import OneSpeechEncoderConfig
from multistill.encoders.base import SPEECH_SECTION, EncoderInfo, Weights
from multistill.encoders.kinds import SPEECH_ADVICE
from multistill.encoders.layers import LayerSelector
from multistill.errors import MultistillError
from multistill.typing import FloatArray

UNTRAINED_SEED = 20231

MIN_COSINE = 0.99
"""Between bfloat16 and float32 states; below it bfloat16 is refused. Rounding alone costs 1e-4."""


class Wav2Vec2Frames:
    """The frames of wav2vec2, for encoders that are to make as many states: 25 ms every 20 ms."""

    minimum_samples = 400
    hop = 320

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.minimum_samples) // self.hop + 1)


class LogMel(Wav2Vec2Frames):
    """Log mel energies in 80 bands, not padded at the ends: no weights, and a serious baseline."""

    bands = 80
    scale = 3.0  # typical standard deviation of log energies, for states near unit variance
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
        self.info = EncoderInfo("log-mel", "none", self.bands, 0, (), "none", scaling="global")

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        return [self._encode_one(torch.from_numpy(wave.copy())) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Nothing to compare: the states are always computed in float32."""

    def _encode_one(self, wave: Tensor) -> FloatArray:
        states = torch.log(self._mel(wave).T.clamp_min(1e-6))
        # One mean per clip removes the microphone's gain and keeps the shape and range of the
        # spectrum. Normalising each band was worse on EMO-DB (docs/features.md).
        return np.ascontiguousarray(((states - states.mean()) / self.scale).numpy())


class ComparedWithFloat32:
    """The part of a speech encoder that compares bfloat16 with float32 before it is used."""

    info: EncoderInfo
    _bfloat16: bool

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        raise NotImplementedError

    def verify(self, waves: Sequence[FloatArray]) -> None:
        if not self._bfloat16 or not waves:
            return
        worst = 1.0
        for wave in waves:
            self._bfloat16 = False
            [exact] = self.encode([wave])
            self._bfloat16 = True
            [rounded] = self.encode([wave])
            norms = float(np.linalg.norm(exact) * np.linalg.norm(rounded))
            worst = min(worst, float((exact * rounded).sum()) / max(norms, 1e-12))
        # Negated, so that NaN is refused too.
        if not worst >= MIN_COSINE:
            raise MultistillError(
                f"{SPEECH_SECTION}.precision: bfloat16 changes the states of `{self.info.name}` "
                f"too much (cosine {worst:.4f} with float32, the minimum is {MIN_COSINE}); "
                "use `precision: float32`"
            )
        self.info = replace(self.info, bfloat16_cosine=round(worst, 6))


class Wav2Vec2Family(ComparedWithFloat32):
    """wav2vec2, HuBERT, WavLM, data2vec-audio and other models of this family in transformers.

    Models with layer norm in the feature extractor are given an attention mask. Group norm
    computes its statistics over time, padding included, with or without a mask; these models and
    data2vec-audio are given batches of equal length.

    Args:
        revision: from `hub.resolve`.

    Raises:
        MultistillError: the model does not read raw audio like wav2vec2.
        UsageError: the model lacks one of the configured layers.
    """

    windowed = True

    def __init__(
        self,
        model: Any,
        config: OneSpeechEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
    ) -> None:
        settings = model.config
        if not hasattr(settings, "conv_kernel") or not hasattr(model, "encoder"):
            raise MultistillError(
                f"{SPEECH_SECTION}.model: `{config.model}` ({settings.model_type}) does not read "
                f"raw audio like wav2vec2; {SPEECH_ADVICE}"
            )
        settings.apply_spec_augment = False
        if getattr(model, "adapter", None) is not None:
            model.adapter = None
        self._kernels = tuple(settings.conv_kernel)
        self._strides = tuple(settings.conv_stride)
        self._selector = LayerSelector(
            model, "layers", config.layers, config.combine, f"{SPEECH_SECTION}.layers"
        )
        self._model = model.eval().to(device)
        self._device = device
        self._bfloat16 = uses_bfloat16(config, device)
        self.hop = math.prod(self._strides)
        self.minimum_samples = self._receptive_field()
        # The positional convolutions of data2vec are several layers deep, and padding that the
        # first of them has filled reaches back into the clip in the next.
        deep = settings.model_type in {"data2vec-audio", "emotion2vec"}
        equal = deep or settings.feat_extract_norm == "group"
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._selector.width(settings.hidden_size),
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=self._selector.indices,
            padding="equal-length" if equal else "mask",
            precision="bfloat16" if self._bfloat16 else "float32",
            revision=revision,
            layer_params=self._selector.count_parameters(),
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

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        lengths = [len(wave) for wave in waves]
        longest = max(lengths)
        # Padded in NumPy: waves from Ray's object store are read-only, which torch warns about.
        padded = np.zeros((len(waves), longest), np.float32)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = wave
        mask = None
        if min(lengths) < longest:
            if self.info.padding == "equal-length":
                raise ValueError("this encoder requires waves of equal length")
            mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
            mask = mask.to(self._device)
        inputs = torch.from_numpy(padded).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            output = self._model(inputs, attention_mask=mask).last_hidden_state
        states = self._selector.gather(output).cpu().numpy()
        return [states[row, : self.frames(length)] for row, length in enumerate(lengths)]


def uses_bfloat16(config: OneSpeechEncoderConfig, device: torch.device) -> bool:
    """Whether an encoder is to compute in bfloat16 on a device."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bfloat16"


def untrained_wav2vec2() -> Any:
    """A small layer-norm wav2vec2 with random weights from a fixed seed."""
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
        torch.manual_seed(UNTRAINED_SEED)
        return Wav2Vec2Model(settings)
