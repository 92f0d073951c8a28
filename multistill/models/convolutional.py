"""A convolutional front over log-mel energies: the speech side of a head with no encoder before it.

Convolutions over time and frequency first, at the few channels that a spectrogram needs, then
separable convolutions over time alone at the width of the head: the split of BC-ResNet (Kim et
al. 2021, section 2), with the residual blocks of ConvNeXt (Liu et al. 2022, 2.6) for the second
part. Nothing is normalised over the batch or over time, so a clip's states depend neither on its
batch nor on padding, and gradients do not depend on how a batch is cut.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multistill.models.spec import ModelSpec

STRIDE = 4
"""Frames of log-mel energies to a state."""
TIME_KERNEL = 7
"""States that a block sees at once: half a second, at 50 frames a second."""


class ConvolutionalFront(nn.Module):
    """From frames of `bands` energies to states of the head's width at a quarter of the rate.

    Args:
        bands: number of values of a frame, neighbours in frequency.
    """

    def __init__(self, spec: ModelSpec, bands: int) -> None:
        super().__init__()
        channels = spec.front_channels
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, 2 * channels, 1)
        # Every stride 2 with this padding leaves ceil(n / 2) of n bands.
        left = (((bands + 1) // 2) + 1) // 2
        self.projection = nn.Linear(2 * channels * left, spec.width)
        self.blocks = nn.ModuleList(
            TimeBlock(spec.width, spec.feedforward, spec.dropout) for _ in range(spec.front_blocks)
        )
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States and mask at a quarter of the rate.

        states [B, T, bands], zero where the mask [B, T] is False -> [B, ceil(T / 4), width] and
        its mask.
        """
        x = F.relu(self.stem(states[:, None]))
        mask = every_second(mask, x.shape[2])
        x = x * mask[:, None, :, None]
        x = F.relu(self.pointwise(self.depthwise(x)))
        mask = every_second(mask, x.shape[2])
        x = self.projection(x.transpose(1, 2).flatten(2))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(~mask[:, :, None], 0.0), mask


class TimeBlock(nn.Module):
    """Depthwise convolution over time, then a feed-forward layer, with a residual (ConvNeXt)."""

    def __init__(self, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            width, width, TIME_KERNEL, padding=TIME_KERNEL // 2, groups=width
        )
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, W], mask [B, T] -> [B, T, W]."""
        seen = x.masked_fill(~mask[:, :, None], 0.0)
        mixed = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.contract(F.gelu(self.expand(self.norm(mixed)))))


def every_second(mask: Tensor, length: int) -> Tensor:
    """The mask [B, T] of a convolution with stride 2 that keeps `length` = ceil(T / 2) positions.

    Indexing instead of slicing, which would restrict an exported graph to some lengths.
    """
    return mask[:, 2 * torch.arange(length, device=mask.device)]
