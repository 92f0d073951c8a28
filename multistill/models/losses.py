"""Losses against labels, one value per utterance without reduction.

`labels` are class indices, -1 where the raters' votes tie. For a loss that needs a single
class, the target of a tied utterance is uniform over the classes that share the most votes: no
utterance is dropped, and no class is favoured by its index.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LabelLoss = Literal["soft-cross-entropy", "cross-entropy", "mse", "focal", "one-vs-rest"]
ClassWeights = Literal["none", "inverse", "effective", "odds"]
LabelSource = Literal["shares", "winner"]

FOCAL_GAMMA = 2.0
"""The best value in the paper (Lin et al. 2017, section 5.1)."""


def label_target(
    shares: Tensor, labels: Tensor, source: LabelSource, smoothing: float = 0.0
) -> Tensor:
    """Target distribution [B, C].

    Args:
        shares: [B, C] vote shares.
        labels: int64 [B], -1 on a tie.
        smoothing: s in (1 - s) t + s / C, label smoothing (Szegedy et al. 2016, section 7). Shares
            are smoothed like single classes, ones that are flat already change the least.
    """
    target = _raw_target(shares, labels, source)
    return target if not smoothing else (1.0 - smoothing) * target + smoothing / shares.shape[1]


def _raw_target(shares: Tensor, labels: Tensor, source: LabelSource) -> Tensor:
    if source == "shares":
        return shares
    if source != "winner":
        raise ValueError(f"label source `{source}` is neither `shares` nor `winner`")
    top = (shares >= shares.amax(dim=1, keepdim=True) - 1e-6).to(shares.dtype)
    tied = top / top.sum(dim=1, keepdim=True)
    one_hot = F.one_hot(labels.clamp(min=0), shares.shape[1]).to(shares.dtype)
    return torch.where((labels < 0)[:, None], tied, one_hot)


def label_loss(
    logits: Tensor,
    shares: Tensor,
    labels: Tensor,
    kind: LabelLoss = "soft-cross-entropy",
    source: LabelSource = "shares",
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Loss of each utterance, [B]; no reduction.

    With target t (see `label_target`), p = softmax(logits) and class weights w (default 1):

        soft-cross-entropy   -sum_c w_c t_c log p_c
        cross-entropy        the same with t always from `labels`
        focal                -sum_c w_c t_c (1 - p_c)^2 log p_c       (Lin et al. 2017, eq. 5)
        mse                  mean_c w_c (logit_c - t_c)^2, on raw outputs as published
        one-vs-rest          -mean_c (w_c t_c log s_c + (1 - t_c) log(1 - s_c)), s = sigmoid(logits)

    Args:
        logits: [B, C]. shares: [B, C], rows sum to 1. labels: int64 [B], -1 on a tie.
        class_weights: [C], see `class_weights`.
        smoothing: of the target, see `label_target`. As in `F.cross_entropy`, each class of the
            smoothed target is multiplied by its own weight.
    """
    source = "winner" if kind == "cross-entropy" else source
    target = label_target(shares, labels, source, smoothing)
    weights = 1.0 if class_weights is None else class_weights
    if kind == "mse":
        return (weights * (logits - target) ** 2).mean(dim=1)
    if kind == "one-vs-rest":
        return F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=class_weights, reduction="none"
        ).mean(dim=1)
    log_p = F.log_softmax(logits, dim=1)
    if kind in ("soft-cross-entropy", "cross-entropy"):
        return -(weights * target * log_p).sum(dim=1)
    if kind == "focal":
        return -(weights * target * (1.0 - log_p.exp()) ** FOCAL_GAMMA * log_p).sum(dim=1)
    raise ValueError(f"unknown label loss `{kind}`")


def class_weights(shares: Tensor, kind: ClassWeights) -> Tensor | None:
    """Class weights [C] against imbalance, from the training set's shares [N, C].

    With n_c = sum of the shares of class c:

        inverse      1 / n_c
        effective    (1 - beta) / (1 - beta^n_c), beta = 1 - 1/N     (Cui et al. 2019, eq. 4-5)

    scaled to a mean weight of 1 over the training set, so that the scale of the loss, and with
    it a suitable learning rate, stays the same;

        odds         (N - n_c) / n_c

    as it is, for `one-vs-rest`: a class and the rest then weigh the same. Classes that do not occur
    have weight 1.
    """
    if kind == "none":
        return None
    counts = shares.double().sum(dim=0)
    present = counts > 0
    if kind == "inverse":
        raw = 1.0 / counts.clamp(min=1e-12)
    elif kind == "effective":
        beta = 1.0 - 1.0 / max(shares.shape[0], 2)
        raw = (1.0 - beta) / (1.0 - beta ** counts.clamp(min=1e-12))
    elif kind == "odds":
        odds = (shares.shape[0] - counts) / counts.clamp(min=1e-12)
        return torch.where(present, odds, torch.ones_like(odds)).to(shares.dtype)
    else:
        raise ValueError(f"unknown class weighting `{kind}`")
    mean = (raw * counts)[present].sum() / counts.sum()
    return torch.where(present, raw / mean, torch.ones_like(raw)).to(shares.dtype)
