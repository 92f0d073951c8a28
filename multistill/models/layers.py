"""Building blocks of the heads: masked attention, transformer stack, positions and pooling.

Masks are boolean and False at padding. Attending to a sequence that consists of padding only
yields zeros, not NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head scaled dot-product attention with a key mask (Vaswani et al. 2017, 3.2).

    Has the parameters of `nn.MultiheadAttention`: in- and out-projections. There is no dropout
    on attention weights: fused kernels do not support it, and drawing [B, H, Tq, Tk] random
    numbers is expensive on a CPU.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias)
        self.key_value = nn.Linear(width, 2 * width, bias)
        self.out = nn.Linear(width, width, bias)
        # The published Xavier bound is that of one joint in-projection [3 width, width].
        bound = math.sqrt(6.0 / (4 * width))
        nn.init.uniform_(self.query.weight, -bound, bound)
        nn.init.uniform_(self.key_value.weight, -bound, bound)
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.query, self.key_value, self.out) if bias else ():
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        """query [B, Tq, W], source [B, Tk, W], source_mask [B, Tk] -> [B, Tq, W]."""
        q = self._split(self.query(query))
        key, value = self.key_value(source).chunk(2, dim=-1)
        has_keys = source_mask.any(dim=1)
        # A softmax over masked keys only is NaN: unmask all keys of such rows, zero the output.
        allowed = (source_mask | ~has_keys[:, None])[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            q,
            self._split(key),
            self._split(value),
            attn_mask=allowed,
        )
        merged = attended.transpose(1, 2).flatten(2)
        result: Tensor = self.out(merged)
        return result.masked_fill(~has_keys[:, None, None], 0.0)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Pre-norm transformer layer with one LayerNorm for query, key and value (Tsai et al. 2019)."""

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
        """Apply the layer: x [B, Tq, W], source [B, Tk, W] -> [B, Tq or 1, W].

        Args:
            source: keys and values; None: self-attention, and `source_mask` is the mask of x.
            first_only: compute and return the first position of x only.
        """
        query = self.attention_norm(x)
        keys = query if source is None else self.attention_norm(source)
        if first_only:
            x, query = x[:, :1], query[:, :1]
        x = x + self.dropout(self.attention(query, keys, source_mask))
        hidden = F.relu(self.expand(self.feedforward_norm(x)))
        return x + self.dropout(self.contract(hidden))


class Positions(nn.Module):
    """States plus sinusoidal positions (counted from 1, sines before cosines).

    A position depends on the index only, not on the states.

    Args:
        scaled: multiply the states by sqrt(W) first (Vaswani et al. 2017, 3.4).
    """

    frequencies: Tensor

    def __init__(self, width: int, scaled: bool = True) -> None:
        super().__init__()
        self.scale = math.sqrt(width) if scaled else 1.0
        half = width // 2
        step = math.log(10000.0) / max(half - 1, 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> scale * x + positions."""
        index = torch.arange(1, x.shape[1] + 1, dtype=torch.float32, device=x.device)
        angles = index[:, None] * self.frequencies[None, :]
        return self.scale * x + torch.cat((angles.sin(), angles.cos()), dim=-1)


class Stack(nn.Module):
    """Crossmodal stack, or a self-attention stack if the source is None.

    Args:
        first_only: only the first position is read, so the last layer, after which positions no
            longer interact, does not compute the others. The output is the same.
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
    """Mean over unpadded positions; zeros if there are none."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype)[:, :, None]
        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class FirstPool(nn.Module):
    """The first position; zeros if it is padding."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[:, 0].masked_fill(~mask[:, :1], 0.0)


class LastPool(nn.Module):
    """The last unpadded position, with padding behind it; zeros if there is none."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        last = (mask.sum(dim=1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return x.gather(1, last).squeeze(1).masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


class AttentionPool(nn.Module):
    """Mean weighted by the softmax of a learned score per position (self-attentive pooling)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # initially the mean over unpadded positions

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = attention_weights(self.score(x).squeeze(-1), mask)
        return (x * weights[:, :, None]).sum(dim=1)


class StatisticsPool(nn.Module):
    """Mean and standard deviation over unpadded positions, [B, 2 W]; zeros if there are none."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return weighted_statistics(x, mean_weights(mask, x.dtype))


class AttentiveStatisticsPool(AttentionPool):
    """Mean and deviation weighted by a learned score per position (Okabe et al. 2018), [B, 2 W]."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return weighted_statistics(x, attention_weights(self.score(x).squeeze(-1), mask))


VARIANCE_FLOOR = 1e-6
"""Added to variances before the square root, whose gradient is infinite at zero."""


def weighted_statistics(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean and deviation [B, 2 W] of x [B, T, W]; zeros where all weights are zero.

    Args:
        weights: [B, T], zero at padding; each row sums to one or to zero.
    """
    weights = weights[:, :, None]
    mean = (x * weights).sum(dim=1)
    variance = ((x - mean[:, None]).square() * weights).sum(dim=1)
    deviation = (variance + VARIANCE_FLOOR).sqrt() * weights.sum(dim=1)
    return torch.cat((mean, deviation), dim=-1)


def mean_weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [B, T] of a mean over unpadded positions; zeros if there are none."""
    weights = mask.to(dtype)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)


def attention_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of scores [B, T] over unpadded positions; zeros if there are none."""
    nonempty = mask.any(dim=1, keepdim=True)
    weights = scores.masked_fill(~(mask | ~nonempty), -torch.inf).softmax(dim=1)
    return weights.masked_fill(~nonempty, 0.0)


def join_frames(states: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Average every `stride` neighbouring positions.

    states [B, T, D], zero where the mask [B, T] is False -> [B, ceil(T / stride), D] and its
    mask. Groups start at the first frame and only unpadded positions count, so padding does not
    change the result.
    """
    length = states.shape[1]
    groups = (length + stride - 1) // stride
    # Indexing instead of padding and reshaping, which would restrict an exported graph to
    # lengths that are multiples of the stride.
    index = torch.arange(stride, device=states.device)
    index = index + stride * torch.arange(groups, device=states.device)[:, None]
    inside = index < length
    index = index.clamp(max=length - 1)
    valid = mask[:, index] & inside
    total = (states[:, index] * valid[..., None]).sum(dim=2)
    return total / valid.sum(dim=2).clamp(min=1)[:, :, None], valid.any(dim=2)
