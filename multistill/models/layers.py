"""Blocks of the heads: masked attention, transformer stack, positions and pooling.

Masks are boolean, True where a position is real. A sequence without any real position
gives zeros everywhere, never NaN: to attend to nothing adds nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head scaled dot-product attention with a key mask (Vaswani et al. 2017, 3.2).

    Same parameters as `nn.MultiheadAttention`: in- and out-projections with biases. The
    weights see no dropout: no fused kernel knows it, and drawing [B, H, Tq, Tk] random
    numbers is dear on a CPU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # One joint in-projection [3 width, width] decides the published Xavier bound.
        bound = math.sqrt(6.0 / (4 * width))
        nn.init.uniform_(self.query.weight, -bound, bound)
        nn.init.uniform_(self.key_value.weight, -bound, bound)
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.query, self.key_value, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        """query [B, Tq, W], source [B, Tk, W], source_mask [B, Tk] -> [B, Tq, W]."""
        q = self._split(self.query(query))
        key, value = self.key_value(source).chunk(2, dim=-1)
        some = source_mask.any(dim=1)
        # A row with every key masked would be a softmax over nothing: open it, then zero it.
        allowed = (source_mask | ~some[:, None])[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            q,
            self._split(key),
            self._split(value),
            attn_mask=allowed,
        )
        merged = attended.transpose(1, 2).flatten(2)
        result: Tensor = self.out(merged)
        return result.masked_fill(~some[:, None, None], 0.0)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Pre-norm transformer layer; one LayerNorm serves query, key and value (Tsai et al. 2019)."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, source: Tensor | None, source_mask: Tensor, first_only: bool = False
    ) -> Tensor:
        """source None: self-attention; then `source_mask` is the mask of x.

        first_only: of x's positions only the first is worked out and returned.
        """
        query = self.attention_norm(x)
        keys = query if source is None else self.attention_norm(source)
        if first_only:
            x, query = x[:, :1], query[:, :1]
        x = x + self.dropout(self.attention(query, keys, source_mask))
        hidden = F.relu(self.expand(self.feedforward_norm(x)))
        return x + self.dropout(self.contract(hidden))


class Positions(nn.Module):
    """Sinusoidal positions from 1, sines then cosines, scaled states plus positions.

    Position depends on the index alone, never on what stands in the states.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        half = width // 2
        step = math.log(10000.0) / max(half - 1, 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> sqrt(W) * x + positions."""
        index = torch.arange(1, x.shape[1] + 1, dtype=torch.float32, device=x.device)
        angles = index[:, None] * self.frequencies[None, :]
        return self.scale * x + torch.cat((angles.sin(), angles.cos()), dim=-1)


class Stack(nn.Module):
    """Crossmodal stack, or a self-attention stack where the source is None.

    Args:
        first_only: the readout is the first position, so the last layer, whose positions do
            not meet any more, need not work out the others: the same answer for less.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float,
        first_only: bool = False,
    ) -> None:
        super().__init__()
        self.first_only = first_only
        self.positions = Positions(width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, source: Tensor | None, source_mask: Tensor) -> Tensor:
        """x [B, Tq, W], source [B, Tk, W] or None, source_mask [B, Tk] -> [B, Tq or 1, W]."""
        x = self.dropout(self.positions(x))
        if source is not None:
            source = self.dropout(self.positions(source))
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, source, source_mask, self.first_only and index == last)
        return self.norm(x)


class MeanPool(nn.Module):
    """Mean over real positions; zeros where there are none."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype)[:, :, None]
        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class FirstPool(nn.Module):
    """The first position; zeros where it is not real."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[:, 0].masked_fill(~mask[:, :1], 0.0)


class AttentionPool(nn.Module):
    """Mean weighted by a learnt score per position (self-attentive pooling)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # starts as the mean over real positions

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        some = mask.any(dim=1)
        scores = self.score(x).squeeze(-1).masked_fill(~(mask | ~some[:, None]), -torch.inf)
        weights = scores.softmax(dim=1)[:, :, None]
        return (x * weights).sum(dim=1).masked_fill(~some[:, None], 0.0)


def join_frames(states: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Every `stride` neighbouring positions become their mean.

    states [B, T, D], zero where the mask [B, T] is False -> [B, ceil(T / stride), D] and its
    mask. Groups start at the first frame and real positions alone count, so padding changes
    nothing.
    """
    length = states.shape[1]
    groups = (length + stride - 1) // stride
    # Gathered by index: padding and reshaping would tie an exported graph to lengths that
    # are multiples of the stride.
    index = torch.arange(stride, device=states.device)
    index = index + stride * torch.arange(groups, device=states.device)[:, None]
    inside = index < length
    index = index.clamp(max=length - 1)
    real = mask[:, index] & inside
    total = (states[:, index] * real[..., None]).sum(dim=2)
    return total / real.sum(dim=2).clamp(min=1)[:, :, None], real.any(dim=2)
