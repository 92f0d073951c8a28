"""The modules that become a graph: a head, or all from samples to a distribution.

Everything that `Predictor` does between its input and its answer is in the graph, calibration
too, so whoever runs it needs no code of this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multistill.audio import SAMPLE_RATE
from multistill.config import SpeechEncoderConfig
from multistill.encoders.speech import LogMel
from multistill.features.decode import VARIANCE_FLOOR
from multistill.features.dtypes import Dtype
from multistill.metrics.classification import EPS
from multistill.models import pooled
from multistill.models.base import Network
from multistill.models.convolutional import STRIDE


class HeadGraph(nn.Module):
    """From encoder states and masks to an answer, as `inference.predict` and `Predictor` do.

    Args:
        config: of the model folder.
        temperature: that calibrates the distribution; 1: none.
    """

    def __init__(self, head: Network, config: Mapping[str, Any], temperature: float) -> None:
        super().__init__()
        self.head = head
        self._temperature = temperature
        self._output = config["output"]
        self._max_frames: int | None = config["max_frames"]
        spec = head.spec
        # Frames that become one: a traced graph is for lengths above it.
        self._joined = spec.audio_stride * (STRIDE if spec.front == "convolutional" else 1)
        self._joined *= pooled.STRIDE**spec.pooled_strides

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """An answer; arguments as of `Network.forward`, those that the head reads.

        Returns:
            `distribution` [B, classes], calibrated, and `logits` [B, classes] before the
            temperature, of a head with classes; `dimensions` [B, dimensions] from 1 to 5, of one
            with dimensions.
        """
        if audio is not None and audio_mask is not None:
            if self._max_frames is not None:
                position = torch.arange(audio_mask.shape[1], device=audio.device)
                audio_mask = audio_mask & (position < self._max_frames)
            audio = F.pad(audio, (0, 0, 0, self._joined))
            audio_mask = F.pad(audio_mask, (0, self._joined))
        output = self.head(audio, audio_mask, text, text_mask)
        answer: dict[str, Tensor] = {}
        if self.head.spec.num_classes:
            answer["distribution"] = self._calibrated(output.logits)
            answer["logits"] = output.logits
        if output.dimensions is not None:
            answer["dimensions"] = output.dimensions
        return answer

    def _calibrated(self, outputs: Tensor) -> Tensor:
        if self._output != "logits":
            outputs = outputs.sigmoid() if self._output == "one-vs-rest" else outputs
            outputs = outputs.clamp_min(EPS)
            shares = outputs / outputs.sum(dim=-1, keepdim=True)
        else:
            shares = outputs.softmax(dim=-1)
        if self._temperature == 1.0:
            return shares
        return (shares.clamp_min(EPS).log() / self._temperature).softmax(dim=-1)


def traces_window(window_ms: int) -> bool:
    """Whether `LogMelStates` transforms windows of so many samples: an even number squared."""
    samples = window_ms * SAMPLE_RATE // 1000
    root = math.isqrt(samples)
    return root * root == samples and root % 2 == 0


class LogMelStates(nn.Module):
    """Samples to the states that the feature store has of the `log-mel` encoder.

    The short-time Fourier transform is made of matrix products, so that runtimes without a Fourier
    transform compute it.

    Args:
        config: of the encoder: how much of a clip is read.
        dtype: in which the store rounds states.
    """

    def __init__(self, config: SpeechEncoderConfig, dtype: Dtype) -> None:
        super().__init__()
        encoder = LogMel(config.bands, config.window_ms, config.hop_ms)
        self.samples, self.hop, self.bands = encoder.minimum_samples, encoder.hop, encoder.bands
        self._scale = encoder.scale
        self._dtype = dtype
        self._longest: int | None = None
        if config.long_clips == "cut":
            self._longest = round(config.max_seconds * SAMPLE_RATE)
        root = self._root = math.isqrt(self.samples)
        assert traces_window(config.window_ms)
        # Sample root * n1 + n2 of a frame and frequency k1 + root * k2, of which k1 above the
        # half mirrors what is below.
        n1 = n2 = k2 = torch.arange(root)
        k1 = torch.arange(root // 2 + 1)
        position = root * n1[None, :] + n2[:, None]
        inner = _turns(position[:, None, :] * k1[:, None], self.samples)  # [2, n2, k1, n1]
        inner = inner.transpose(0, 1).flatten(0, 2) * encoder.window[position].repeat_interleave(
            2 * len(k1), dim=0
        )
        cosines, sines = _turns(k2[:, None] * n2, root)
        outer = torch.cat((torch.cat((cosines, -sines), 1), torch.cat((sines, cosines), 1)))
        frequency = k1[:, None] + root * k2
        mirrored = torch.minimum(frequency, self.samples - frequency)
        twice = (frequency > mirrored) & (k1 % (root // 2) == 0)[:, None]
        filters = encoder.filters[mirrored].masked_fill(twice[:, :, None], 0.0)
        self.register_buffer("position", position.flatten())
        self.register_buffer("inner", inner[:, :, None].float())
        order = torch.arange(2 * root * len(k1)).view(root, 2, len(k1)).permute(2, 1, 0)
        self.register_buffer("order", order.flatten())
        self.register_buffer("outer", outer.repeat(len(k1), 1)[:, :, None].float())
        # A power is the sum of two squares, each with the weight of the power.
        filters = filters[:, None].expand(-1, 2, -1, -1).flatten(0, 2)
        self.register_buffer("filters", filters.T[:, :, None].contiguous())

    position: Tensor
    inner: Tensor
    order: Tensor
    outer: Tensor
    filters: Tensor

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, T, bands] and mask [B, T] of samples [B, S] at 16 kHz with lengths [B]."""
        if self._longest is not None:
            lengths = lengths.clamp(max=self._longest)
        states = self._energies(self._normalized(samples, lengths)).clamp_min(LogMel.floor).log()
        counts = ((lengths - self.samples) // self.hop + 1).clamp(min=0)
        mask = torch.arange(states.shape[1], device=states.device) < counts[:, None]
        inside = mask[:, :, None]
        total = (states * inside).sum(dim=(1, 2)) / (self.bands * counts.clamp(min=1))
        states = (states - total[:, None, None]) / self._scale
        return self._rounded(states * inside), mask

    def _energies(self, wave: Tensor) -> Tensor:
        """Energies [B, T, bands] of waves [B, S], with two frames at least, which is what traces.

        The Fourier transform has two steps (Cooley and Tukey, 1965), each a product with one
        matrix per group. Its sums are as short as those of a fast transform, and so as precise.
        """
        wave = F.pad(wave, (0, self.samples + self.hop))
        count = (wave.shape[1] - self.samples) // self.hop + 1
        starts = self.hop * torch.arange(count, device=wave.device)
        root, half = self._root, self._root // 2 + 1
        frames = wave[:, self.position[:, None] + starts]
        columns = F.conv1d(frames, self.inner, groups=root)[:, self.order]
        spectrum = F.conv1d(columns, self.outer, groups=half)
        return F.conv1d(spectrum.square(), self.filters).transpose(1, 2)

    def _normalized(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """As `features.decode.normalize`: zero mean and unit variance of each clip."""
        inside = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
        count = lengths.clamp(min=1)[:, None].double()
        wave = samples.masked_fill(~inside, 0.0)
        mean = (wave.double().sum(dim=1, keepdim=True) / count).float()
        centred = (wave - mean).masked_fill(~inside, 0.0)
        variance = centred.double().square().sum(dim=1, keepdim=True) / count
        return centred / (variance + VARIANCE_FLOOR).sqrt().float()

    def _rounded(self, states: Tensor) -> Tensor:
        """As `features.dtypes.pack` and `unpack`."""
        if self._dtype == "float16":
            return states.half().float()
        if self._dtype == "bfloat16":
            return states.bfloat16().float()
        if self._dtype == "int8":
            scales = states.abs().amax(dim=1, keepdim=True) / 127.0
            divisor = torch.where(scales > 0, scales, 1.0)
            return (states / divisor).round().clamp(-127, 127) * scales
        return states


def _turns(product: Tensor, whole: int) -> Tensor:
    """Real and imaginary part [2, ...] of exp(-2 pi i product / whole), float64."""
    angles = -2 * math.pi * (product % whole).double() / whole
    return torch.stack((angles.cos(), angles.sin()))


class SamplesGraph(nn.Module):
    """From samples at 16 kHz to an answer, for a head that reads log-mel energies.

    A head that reads text too takes the states of its text encoder.
    """

    def __init__(self, states: LogMelStates, head: HeadGraph) -> None:
        super().__init__()
        self.states = states
        self.head = head

    def forward(
        self,
        samples: Tensor,
        lengths: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As of `HeadGraph`, of samples [B, S] float32, as decoded, with lengths [B] int64."""
        answer: dict[str, Tensor] = self.head(*self.states(samples, lengths), text, text_mask)
        return answer
