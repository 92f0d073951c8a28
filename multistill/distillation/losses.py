"""Distillation losses on logits, one value per utterance without reduction.

Notation: z_s, z_t are the logits of student and teacher [B, C]; p(T) = softmax(z / T). Teacher
logits carry no gradient.

Every loss is combined with the label loss (`multistill.models.losses`) as

    total = weight * teacher's loss + (1 - weight) * label loss

so weight 0 is exactly the student without a teacher, and weight 1 ignores the labels (except
for the target class of DKD).

Ties: DKD needs one target class per utterance. An utterance whose votes tie has none, so its
loss is `kd`, the loss that DKD decomposes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multistill.models.losses import LabelLoss, LabelSource, label_loss

SoftLoss = Literal["kd", "two-mse", "dkd", "dist"]


def standardized(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """z' = (z - mean(z)) / (eps + std(z)) per utterance (Sun et al. 2024, arXiv 2403.01427).

    The student then does not have to match the scale of the teacher's logits. The teacher's
    confidence is lost with the scale, so calibrate the student afterwards.
    """
    deviation = logits.std(dim=1, keepdim=True)
    return (logits - logits.mean(dim=1, keepdim=True)) / (eps + deviation)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(p_t(T) || p_s(T)) -> [B] (Hinton et al. 2015, arXiv 1503.02531).

    A sum over classes, so its mean over the batch is torch's `batchmean`. The factor T^2 keeps
    the scale of the gradient, which approaches (z_s - z_t) / C for centred logits as T grows.
    """
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=1)


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_c (z_s - z_t)^2 -> [B], on raw outputs as published (Multi-Still 2023).

    Provided for comparison: together with the MSE to the labels, its gradient is that of a
    single MSE to the mean of label and teacher output. Weight 0.5 gives half the published sum.
    """
    return ((student - teacher) ** 2).mean(dim=1)


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 * (alpha * TCKD + beta * NCKD) -> [B] (DKD, Zhao et al. 2022, arXiv 2203.08679).

    TCKD is the KL over (target, all other classes), NCKD the KL over the renormalised other
    classes. `kd` equals TCKD + (1 - p_t[target]) * NCKD, i.e. alpha 1, beta 1 - p_t[target].

    Args:
        target: int64 [B], a class for every row.
    """
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    others = ~F.one_hot(target, student.shape[1]).bool()
    row = target[:, None]
    target_s, target_t = log_s.gather(1, row)[:, 0], log_t.gather(1, row)[:, 0]
    rest_s = log_s.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    rest_t = log_t.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    tckd = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    inner_s = (log_s - rest_s[:, None]).masked_fill(~others, 0.0)
    inner_t = (log_t - rest_t[:, None]).masked_fill(~others, 0.0)
    nckd = (inner_t.exp() * (inner_t - inner_s)).sum(dim=1)
    return temperature**2 * (alpha * tckd + beta * nckd)


def pearson(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson correlation along `dim`; 0 if either input is constant."""
    return F.cosine_similarity(
        student - student.mean(dim=dim, keepdim=True),
        teacher - teacher.mean(dim=dim, keepdim=True),
        dim=dim,
    )


def dist(
    student: Tensor, teacher: Tensor, temperature: float, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """T^2 * (beta * inter + gamma * intra) -> [B] (DIST, Huang et al. 2022, arXiv 2205.10536).

        inter = 1 - pearson(p_s(T)[i, :], p_t(T)[i, :])              for utterance i
        intra = 1 - mean_c pearson(p_s(T)[:, c], p_t(T)[:, c])       one value for the batch

    The intra-class term correlates over the rows of one call: under data-parallel training or
    accumulation these are one worker's micro-batch. For a single row it is constant.
    """
    p_s = F.softmax(student / temperature, dim=1)
    p_t = F.softmax(teacher / temperature, dim=1)
    inter = 1.0 - pearson(p_s, p_t, dim=1)
    intra = 1.0 - pearson(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def soft_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    loss: SoftLoss,
    temperature: float,
    standardize: bool = False,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
) -> Tensor:
    """The teacher's loss [B]; `labels` [B], -1 on a tie, are used by `dkd` only."""
    teacher = teacher.detach()
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    if loss == "kd":
        return kd(student, teacher, temperature)
    if loss == "two-mse":
        return mse(student, teacher)
    if loss == "dist":
        return dist(student, teacher, temperature)
    if loss == "dkd":
        target = labels.clamp(min=0)
        decoupled = dkd(student, teacher, target, temperature, dkd_alpha, dkd_beta)
        return torch.where(labels < 0, kd(student, teacher, temperature), decoupled)
    raise ValueError(f"unknown distillation loss `{loss}`")


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    shares: Tensor,
    labels: Tensor,
    *,
    loss: SoftLoss = "kd",
    temperature: float = 2.0,
    weight: float = 0.5,
    standardize: bool = False,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
    label_kind: LabelLoss = "soft-cross-entropy",
    label_source: LabelSource = "shares",
    class_weights: Tensor | None = None,
) -> Tensor:
    """weight * teacher's loss + (1 - weight) * label loss, per utterance [B].

    Args:
        student_logits, teacher_logits, shares: [B, C]. labels: int64 [B], -1 on a tie.
        weight: of the teacher's loss, 0 to 1; `multistill.distillation.schedule` varies it over
            training.
        label_kind: ignored for `two-mse`, whose label loss is always the published MSE.
    """
    kind: LabelLoss = "mse" if loss == "two-mse" else label_kind
    hard = label_loss(student_logits, shares, labels, kind, label_source, class_weights)
    soft = soft_loss(
        student_logits,
        teacher_logits,
        labels,
        loss=loss,
        temperature=temperature,
        standardize=standardize,
        dkd_alpha=dkd_alpha,
        dkd_beta=dkd_beta,
    )
    return weight * soft + (1.0 - weight) * hard
