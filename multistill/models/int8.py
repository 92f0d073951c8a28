"""Weights in 8 bits: a quarter of the size on disk, rounded after training.

Matrices and convolution kernels become int8 with a scale per output channel, symmetric around
zero, each as far as its largest weight reaches (Nagel et al. 2021, sections 2.2 and 3.1). Biases,
norms and the moments of standardised states stay float32: they are a few per cent of the numbers.
A loaded model computes in float32 with the rounded weights, so its answers are the same on every
processor; activations are not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALES = ".int8_scales"
"""Added to the name of an int8 tensor: its scales [output channels] float32."""
LARGEST = 127


def to_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model with its weights as int8, and their scales."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        rows = tensor.detach().float()
        scales = rows.abs().flatten(1).amax(dim=1) / LARGEST
        divisor = torch.where(scales > 0, scales, 1.0)
        packed[name] = (rows / _along_rows(divisor, rows)).round().to(torch.int8)
        packed[name + SCALES] = scales
    return packed


def from_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_int8`, up to half a scale; tensors without scales are returned as they are."""
    return {
        name: tensor.float() * _along_rows(tensors[name + SCALES], tensor)
        if name + SCALES in tensors
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALES)
    }


def _along_rows(scales: Tensor, rows: Tensor) -> Tensor:
    return scales.view(-1, *(1,) * (rows.dim() - 1))
