"""Input standardisation: buffers of a head that centre and scale the states of one encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multistill.typing import FloatArray


class Standardize(nn.Module):
    """(states - centre) / scale, with zeros at padding.

    Centre and scale are part of the model's weights files, so a model cannot meet the statistics
    of another corpus. Until `fit` sets them, states pass unchanged.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, centre: FloatArray, scale: FloatArray) -> None:
        """Set the buffers, each [dim].

        Raises:
            ValueError: they have another dimension.
        """
        if centre.shape != self.centre.shape or scale.shape != self.scale.shape:
            raise ValueError(
                f"statistics of {centre.shape[0]} dimensions for states of {len(self.centre)}"
            )
        self.centre.copy_(torch.from_numpy(centre))
        self.scale.copy_(torch.from_numpy(scale))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [..., dim], mask [...], False at padding -> [..., dim]."""
        standardized = (states - self.centre) / self.scale
        return standardized.masked_fill(~mask[..., None], 0.0)
