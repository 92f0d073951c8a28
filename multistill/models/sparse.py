"""Feature maps of which a text chooses the points that are computed (MESM, Dai et al. 2021).

A text-guided attention weighs the points of a chunk's feature map, the smallest set of points
whose weights reach `top_p` is kept, and the convolutions that follow read and write kept points
only: submanifold sparse convolutions (Graham and van der Maaten 2017), as dense ones between
masks. That has their values exactly, without their speed: `multiply_accumulates` counts what a
sparse implementation would compute.

Feature maps are [N, C, H, W] of N chunks, with H bands and W frames; masks are bool [N, H, W], and
a map is zero where its mask is False. Texts are [N, D], one for each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PointNormalization = Literal["batch", "layer"]
Selection = Literal["straight-through", "scaled"]

MOMENTUM = 0.1
"""Of the running statistics, as of `nn.BatchNorm2d`."""


def top_p(weights: Tensor, mask: Tensor, p: float) -> Tensor:
    """The smallest set of points whose weights sum to at least `p`, at least one: bool [N, P].

    Args:
        weights: [N, P], not negative; each row sums to one over its points, or is zero.
        mask: bool [N, P]; other points are never chosen.
    """
    if p >= 1.0:  # a rounded sum can reach 1 before the last point
        return mask
    order = weights.masked_fill(~mask, -1.0).argsort(dim=1, descending=True, stable=True)
    reached = weights.gather(1, order).cumsum(dim=1)
    before = F.pad(reached[:, :-1], (1, 0))
    return torch.zeros_like(mask).scatter(1, order, before < p) & mask


class TextGuidedSelection(nn.Module):
    """Additive attention of a text to the points of a feature map, and the points that it keeps.

    The score of point m for query q is w2 . tanh(W_m m + b + W_q q) + b2, its weight the softmax
    over the points of the chunk. Gradients reach the scores in one of two ways: `straight-through`
    leaves kept features as they are, and has the gradient that a weight times the number of points
    would have in place of the 0 or 1 (Bengio et al. 2013); `scaled` multiplies kept features by
    weight times number of kept points.

    Args:
        channels: of the map, and hidden width.
    """

    def __init__(self, channels: int, query_dim: int, p: float, selection: Selection) -> None:
        super().__init__()
        self.p, self.selection = p, selection
        self.of_point = nn.Linear(channels, channels)
        self.of_query = nn.Linear(query_dim, channels, bias=False)
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [N, C, H, W] with mask [N, H, W], query [N, D] -> the map and its kept points."""
        points = self.of_point(x.flatten(2).transpose(1, 2))
        scores = self.score(torch.tanh(points + self.of_query(query)[:, None])).squeeze(-1).float()
        active = mask.flatten(1)
        # A softmax over no point is NaN: of a padded chunk, all are unmasked, and none is kept.
        empty = ~active.any(dim=1, keepdim=True)
        weights = scores.masked_fill(~(active | empty), -torch.inf).softmax(dim=1)
        keep = top_p(weights.detach(), active, self.p)
        if self.selection == "scaled":
            gate = keep * weights * keep.sum(dim=1, keepdim=True)
        else:
            soft = active * weights * active.sum(dim=1, keepdim=True)
            gate = keep + (soft - soft.detach())
        kept = keep.view_as(mask)
        return x * gate.view_as(mask)[:, None].to(x.dtype), kept


class PointNorm(nn.Module):
    """Normalisation of the channels of a feature map, of its active points alone.

    `batch`: by mean and variance of the batch, and running ones in evaluation (Ioffe and Szegedy
    2015). `layer`: of each point over its channels, which depends neither on the batch nor on the
    other points.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, kind: PointNormalization, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [N, C, H, W], mask [N, H, W] -> [N, C, H, W], not zeroed where the mask is False."""
        if self.kind == "layer":
            # `F.layer_norm` goes point by point: seven times as slow on a CPU with four channels.
            centred = x.float() - x.float().mean(dim=1, keepdim=True)
            deviation = (centred.square().mean(dim=1, keepdim=True) + self.eps).sqrt()
            normalized = centred / deviation * self.weight[:, None, None]
            return (normalized + self.bias[:, None, None]).to(x.dtype)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._of_batch(x.float(), mask)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def _of_batch(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [C] over the active points; the running ones are updated."""
        active = mask[:, None].to(x.dtype)
        points = active.sum()
        count = points.clamp(min=1.0)
        mean = (x * active).sum(dim=(0, 2, 3)) / count
        squares = ((x - mean[:, None, None]).square() * active).sum(dim=(0, 2, 3))
        with torch.no_grad():
            momentum = MOMENTUM * (points > 0).to(x.dtype)  # a batch may be without audio
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(squares / (count - 1.0).clamp(min=1.0), momentum)
        return mean, squares / count


class PointConv(nn.Module):
    """Convolution, normalisation and ReLU on the active points of a feature map.

    Args:
        kernel: odd; the map keeps its size.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        normalization: PointNormalization,
        *,
        bias: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
        self.norm = PointNorm(out, normalization, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [N, C, H, W], zero where mask [N, H, W] is False -> [N, out, H, W], also zero there."""
        return F.relu(self.norm(self.conv(x), mask)) * mask[:, None]


def pool_points(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Largest active value of every 2 x 2 points; a pooled point is active if one of them is.

    x is not negative and zero at other points. Odd sizes are rounded up.
    """
    pooled = F.max_pool2d(x, 2, ceil_mode=True)
    active = F.max_pool2d(mask[:, None].to(x.dtype), 2, ceil_mode=True)
    return pooled, active[:, 0] > 0


class Stage(nn.Module):
    """Two 3 x 3 convolutions and a pooling; with a selection, on the points that it keeps."""

    def __init__(
        self,
        channels: int,
        out: int,
        normalization: PointNormalization,
        selection: TextGuidedSelection | None = None,
    ) -> None:
        super().__init__()
        self.selection = selection
        # As published: the sparse convolutions have no bias, and another epsilon.
        dense = selection is None
        eps = 1e-5 if dense else 1e-4
        self.first = PointConv(channels, out, 3, normalization, bias=dense, eps=eps)
        self.second = PointConv(out, out, 3, normalization, bias=dense, eps=eps)

    def forward(self, x: Tensor, mask: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W], mask [N, H, W], query [N, D] -> half the size, and its mask."""
        if self.selection is not None:
            assert query is not None
            x, mask = self.selection(x, mask, query)
        return pool_points(self.second(self.first(x, mask), mask), mask)


@dataclass
class ConvolutionCost:
    """Multiply-accumulates of the convolutions of a forward pass.

    Attributes:
        dense: at every point of every map, padding included: what is computed here.
        active: at active points alone: dense times the active share, which a sparse
            implementation computes at most.
    """

    dense: int = 0
    active: int = 0


@contextmanager
def counting_convolutions(model: nn.Module) -> Iterator[ConvolutionCost]:
    """Count the multiply-accumulates of every `PointConv` that runs in the context."""
    cost = ConvolutionCost()

    def count(module: nn.Module, arguments: tuple[Any, ...], _: Any) -> None:
        assert isinstance(module, PointConv)
        mask: Tensor = arguments[1]
        per_point = module.conv.weight.numel()
        cost.dense += per_point * mask.numel()
        cost.active += per_point * int(mask.sum())

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, PointConv)
    ]
    try:
        yield cost
    finally:
        for hook in hooks:
            hook.remove()


def multiply_accumulates(model: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of a forward pass: as it is computed here, and at active points alone.

    The second number takes all else (attention, linear layers) as it is, so it holds what the
    selection costs, too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counting_convolutions(model) as cost, counter:
        model(*inputs)
    dense = counter.get_total_flops() // 2
    return dense, dense - cost.dense + cost.active
