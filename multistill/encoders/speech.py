"""Speech encoders: log-mel energies and the wav2vec2 family.

All of them make 50 states per second from 16 kHz: a receptive field of 400 samples every 320
samples, so T = floor((samples - 400) / 320) + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from multistill.audio import SAMPLE_RATE
from multistill.config import OneSpeechEncoderConfig
from multistill.encoders.base import SPEECH_SECTION, EncoderInfo, Weights
from multistill.encoders.kinds import SPEECH_ADVICE
from multistill.encoders.layers import LayerSelector
from multistill.encoders.masking import SpecAugment
from multistill.encoders.trained_layers import stored_layers
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
    """Log mel energies, not padded at the ends: no weights, and a serious baseline.

    Args:
        bands: from 0 to 8000 Hz.
        window_ms, hop_ms: of the short-time Fourier transform, in milliseconds.

    Attributes:
        window: [samples], by which a frame is multiplied.
        filters: [samples // 2 + 1, bands], from the powers of frequencies to energies.
    """

    scale = 3.0  # typical standard deviation of log energies, for states near unit variance
    floor = 1e-6  # of an energy
    windowed = False

    def __init__(self, bands: int = 80, window_ms: int = 25, hop_ms: int = 20) -> None:
        from torchaudio.transforms import MelSpectrogram

        self.minimum_samples = window_ms * SAMPLE_RATE // 1000
        self.hop, self.bands = hop_ms * SAMPLE_RATE // 1000, bands
        self._mel = MelSpectrogram(
            sample_rate=SAMPLE_RATE,
            n_fft=self.minimum_samples,
            hop_length=self.hop,
            n_mels=bands,
            center=False,
            norm="slaney",
            mel_scale="slaney",
        )
        self.window: Tensor = self._mel.spectrogram.window
        self.filters: Tensor = self._mel.mel_scale.fb
        self.info = EncoderInfo("log-mel", "none", bands, 0, (), "none", scaling="global")

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        return [self._encode_one(torch.from_numpy(wave.copy())) for wave in waves]

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Nothing to compare: the states are always computed in float32."""

    def _encode_one(self, wave: Tensor) -> FloatArray:
        states = torch.log(self._mel(wave).T.clamp_min(self.floor))
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
            try:
                [exact] = self.encode([wave])
            finally:
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


class Wav2Vec2Network(nn.Module):
    """A model of this family in transformers, from waves or from a hidden state to hidden states.

    Models with layer norm in the feature extractor are given an attention mask. Group norm
    computes its statistics over time, padding included, with or without a mask; in these models,
    in data2vec and in conformers, clips of different length are computed one after the other.

    Args:
        layers: hidden states that are selected.
        combine: how several become one.

    Attributes:
        masking: applied to the input of the encoder.
        borrowed: part of a layer below those that are left, which they use.

    Raises:
        UsageError: the model lacks one of the layers.
    """

    def __init__(
        self, model: Any, layers: Sequence[int], combine: Literal["mean", "concat"]
    ) -> None:
        super().__init__()
        settings = model.config
        settings.apply_spec_augment = False
        if getattr(model, "adapter", None) is not None:
            model.adapter = None
        self.selector = LayerSelector(model, "layers", layers, combine, f"{SPEECH_SECTION}.layers")
        self.model = model
        self.masking: SpecAugment | None = None
        self.borrowed: nn.Module | None = None
        model.encoder.register_forward_pre_hook(self._mask)
        self.dim = self.selector.width(settings.hidden_size)
        self.hidden = int(settings.hidden_size)
        # The positional convolutions of data2vec are several layers deep, and padding that the
        # first of them has filled reaches back into the clip in the next. So it does in the
        # convolutions between the layers of conformers.
        self.equal_length = (
            settings.model_type in {"data2vec-audio", "emotion2vec", "wav2vec2-conformer"}
            or settings.feat_extract_norm == "group"
        )
        self._kernels = tuple(settings.conv_kernel)
        self._strides = tuple(settings.conv_stride)
        self.hop = math.prod(self._strides)
        self.minimum_samples = self._receptive_field()

    def _receptive_field(self) -> int:
        field, jump = 1, 1
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            field += (kernel - 1) * jump
            jump *= stride
        return field

    def frames(self, samples: int) -> int:
        """Number of states of a wave."""
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            samples = (samples - kernel) // stride + 1
            if samples <= 0:
                return 0
        return samples

    def forward(self, waves: Tensor, lengths: Sequence[int]) -> Tensor:
        """States [B, T, dim] float32 of waves [B, samples], the longest of which is not padded.

        Args:
            lengths: samples of each wave, each at least `minimum_samples`; zeros follow.
        """
        if min(lengths) == max(lengths):
            return self._batch(waves, None)
        if not self.equal_length:
            limits = torch.tensor(lengths, device=waves.device)
            positions = torch.arange(waves.shape[1], device=waves.device)
            return self._batch(waves, (positions < limits[:, None]).long())
        states: dict[int, Tensor] = {}
        for rows in rows_by_length(lengths).values():
            for row, each in zip(
                rows, self._batch(waves[rows, : lengths[rows[0]]], None), strict=True
            ):
                states[row] = each
        in_order = [states[row] for row in range(len(lengths))]
        return nn.utils.rnn.pad_sequence(in_order, batch_first=True)

    def _batch(self, waves: Tensor, mask: Tensor | None) -> Tensor:
        return self.selector.gather(self.model(waves, attention_mask=mask).last_hidden_state)

    def _mask(self, _encoder: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.masking is None:
            return inputs
        return (self.masking(inputs[0]), *inputs[1:])

    @property
    def final_norm(self) -> nn.Module | None:
        """The layer norm after the layers, if there is one."""
        return self.model.encoder.layer_norm if norm_is_last(self.model.config) else None

    def start_at(self, first: int) -> None:
        """Remove what lies below hidden state `first`, which `from_states` then reads."""
        model, encoder = self.model, self.model.encoder
        lowest: Any = self.selector.layers[0]
        self.selector.start_at(first)
        if model.config.model_type == "wavlm":
            # All layers share the distances that the first one has learnt.
            distances = lowest.attention.rel_attn_embed
            lowest = self.selector.layers[0]
            lowest.attention.rel_attn_embed = distances
            self.borrowed = distances if first else None
        model.feature_extractor = model.feature_projection = model.masked_spec_embed = None
        encoder.pos_conv_embed = _NoPositions()
        encoder.dropout = nn.Identity()
        if not norm_is_last(model.config):
            encoder.layer_norm = nn.Identity()

    def from_states(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States [B, T, dim] float32 of the hidden state that `start_at` named [B, T, hidden].

        Args:
            mask: [B, T] bool, False at padding; None: nothing is padded.
        """
        # The encoder writes zeros over padding, in place.
        copied = states.clone() if mask is not None else states
        return self.selector.gather(self.model.encoder(copied, mask).last_hidden_state)


class _NoPositions(nn.Module):
    """In the place of positions that the input already has."""

    def forward(self, states: Tensor) -> Tensor:
        return states.new_zeros(())


def norm_is_last(settings: Any) -> bool:
    """Whether the layer norm of `model.encoder` follows the layers; else it is before the first."""
    return settings.model_type == "wav2vec2-conformer" or bool(
        getattr(settings, "do_stable_layer_norm", False)
    )


def rows_by_length(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Rows of a batch whose clips are of equal length, shortest first."""
    rows: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        rows.setdefault(lengths[row], []).append(row)
    return rows


class Wav2Vec2Family(ComparedWithFloat32):
    """wav2vec2, HuBERT, WavLM, data2vec-audio and other models of this family in transformers.

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
        refuse_other_kinds(model, config)
        layers = stored_layers(config, len(model.encoder.layers))
        network = Wav2Vec2Network(model, layers, config.combine)
        self.network = network.eval().to(device)
        self._device = device
        self._bfloat16 = uses_bfloat16(config, device)
        self.hop = network.hop
        self.minimum_samples = network.minimum_samples
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=network.dim,
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=network.selector.indices,
            padding="equal-length" if network.equal_length else "mask",
            precision="bfloat16" if self._bfloat16 else "float32",
            revision=revision,
            layer_params=network.selector.count_parameters(),
        )

    def frames(self, samples: int) -> int:
        return self.network.frames(samples)

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        lengths = [len(wave) for wave in waves]
        longest = max(lengths)
        if min(lengths) < longest and self.info.padding == "equal-length":
            raise ValueError("this encoder requires waves of equal length")
        # Padded in NumPy: waves from Ray's object store are read-only, which torch warns about.
        padded = np.zeros((len(waves), longest), np.float32)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = wave
        inputs = torch.from_numpy(padded).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            states = self.network(inputs, lengths).cpu().numpy()
        return [states[row, : self.frames(length)] for row, length in enumerate(lengths)]


def refuse_other_kinds(model: Any, config: OneSpeechEncoderConfig) -> None:
    """Refuse a model that does not read raw audio like wav2vec2.

    Raises:
        MultistillError: it does not.
    """
    settings = model.config
    if not hasattr(settings, "conv_kernel") or not hasattr(model, "encoder"):
        raise MultistillError(
            f"{SPEECH_SECTION}.model: `{config.model}` ({settings.model_type}) does not read "
            f"raw audio like wav2vec2; {SPEECH_ADVICE}"
        )


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
