"""SpecAugment (Park et al., 2019, arXiv:1904.08779): spans of frames and of features, masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPAN = 10
"""Frames or features in one masked span, as in wav2vec2 (Baevski et al., 2020)."""


class SpecAugment(nn.Module):
    """Masks a share of the frames and of the features of each clip; only in training.

    Spans may overlap, and start anywhere with equal probability, which is such that the expected
    share is that of the settings. Drawn from torch's generator of the device.

    Args:
        time: share of the frames that are masked.
        feature: share of the features that are masked.
        masked: [dim], what a masked frame becomes; None: zeros.
    """

    def __init__(self, time: float, feature: float, masked: nn.Parameter | None = None) -> None:
        super().__init__()
        self.time, self.feature = time, feature
        self.masked = masked

    def forward(self, states: Tensor) -> Tensor:
        """States [B, T, dim], masked."""
        if not self.training:
            return states
        rows, frames, width = states.shape
        if self.time:
            spans = _spans(rows, frames, self.time, states.device)[:, :, None]
            other = states.new_zeros(()) if self.masked is None else self.masked.to(states.dtype)
            states = torch.where(spans, other, states)
        if self.feature:
            spans = _spans(rows, width, self.feature, states.device)[:, None, :]
            states = states.masked_fill(spans, 0.0)
        return states


def _spans(rows: int, length: int, share: float, device: torch.device) -> Tensor:
    """A mask [rows, length] bool of spans that cover this share of each row on average."""
    # A position stays if none of the SPAN positions up to it starts a span.
    start = 1.0 - (1.0 - share) ** (1.0 / SPAN)
    # Also before the first position, so that the ends are masked as often as the middle.
    starts = torch.rand(rows, length + SPAN - 1, device=device) < start
    return nn.functional.max_pool1d(starts.float(), SPAN, stride=1).bool()
