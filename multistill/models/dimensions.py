"""Valence, arousal and dominance: the scale of a head's outputs, and losses on them.

Values are on the manifest's scale from 1 to 5. A target that is missing is NaN, and counts in no
loss. Lin's concordance correlation coefficient (CCC) of two series x and y is

    CCC = 2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)              (Lin 1989, eq. 2)

with population moments: 1 where they are equal, 0 for a constant series.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multistill.typing import FloatArray

DimensionLoss = Literal["ccc", "mse", "rmse"]

_EPS = 1e-8


class DimensionScale(nn.Module):
    """centre + scale * outputs: a head's outputs to the scale of the dimensions.

    Both are of the training part's values, so that outputs near zero, those of a new head, are
    its mean. They are part of the model's weights file.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.full((dimensions,), 3.0))
        self.register_buffer("scale", torch.ones(dimensions))

    def fit(self, values: FloatArray) -> None:
        """Set both from the training part's values [N, D], NaN where there is none.

        Without a value, or where they do not differ, centre or scale stay 3 and 1.
        """
        for column, present in enumerate(torch.from_numpy(values).double().T):
            present = present[present.isfinite()]
            if len(present):
                self.centre[column] = present.mean()
            if len(present) and present.std(correction=0) > 0:
                self.scale[column] = present.std(correction=0)

    def forward(self, outputs: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return self.centre + self.scale * outputs


def ccc(predicted: Tensor, target: Tensor) -> Tensor:
    """Concordance correlation of two series [n]; 0 if both are constant.

    Examples:
        >>> series = torch.tensor([1.0, 2.0, 4.0])
        >>> round(ccc(series + 1, series).item(), 4)
        0.7568
    """
    x, y = predicted.mean(), target.mean()
    covariance = ((predicted - x) * (target - y)).mean()
    variances = (predicted - x).square().mean() + (target - y).square().mean()
    return 2 * covariance / (variances + (x - y).square()).clamp(min=_EPS)


def dimension_loss(
    predicted: Tensor, target: Tensor, kind: DimensionLoss, weights: Tensor
) -> Tensor:
    """Sum over the dimensions of the weighted losses, one value per utterance [B].

        ccc     1 - CCC, over the rows of one call
        rmse    sqrt(mean (x - y)^2), over the rows of one call
        mse     (x - y)^2

    Losses over the rows of a call, a micro-batch, are the same for all of its rows; with no
    target in it they are 0. Their gradient depends on which rows are computed together.

    Args:
        predicted: [B, D].
        target: [B, D], NaN where it is missing.
        weights: [D], factor of each dimension's loss.
    """
    known = target.isfinite()
    losses = 0.0 * predicted.sum(dim=1)  # with a gradient, even without any target
    for column, weight in enumerate(weights):
        rows = known[:, column]
        x, y = predicted[:, column], target[:, column].where(rows, predicted[:, column].detach())
        if kind == "mse":
            losses = losses + weight * (x - y).square()
        elif rows.any():
            over_rows = _over_rows(x[rows], y[rows], kind)
            losses = losses + weight * over_rows
    return losses


def _over_rows(x: Tensor, y: Tensor, kind: DimensionLoss) -> Tensor:
    if kind == "ccc":
        return 1.0 - ccc(x, y)
    if kind == "rmse":
        # The derivative of the root is infinite at 0.
        return (x - y).square().mean().clamp(min=_EPS).sqrt()
    raise ValueError(f"unknown loss of dimensions `{kind}`")
