"""Distillation losses on logits, one value per utterance, no reduction.

Notation: z_s, z_t logits of student and teacher [B, C]; p(T) = softmax(z / T). Teacher
logits carry no gradient.

Every loss is joined with the label loss as

    total = weight * soft + (1 - weight) * hard

so weight 0 is exactly the student without a teacher, and weight 1 reads no label (but for
the DKD target class).

Soft labels and ties. The hard part follows `multistill.models.losses`. DKD needs one target
class: the winner. A tied utterance has none, so it takes the loss that DKD takes apart,
Hinton's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multistill.models.losses import LabelLoss, LabelSource, label_loss

SoftLoss = Literal["kd", "two-mse", "dkd", "dist"]


class DistillationTerms(NamedTuple):
    """Each [B]: the joined loss and its two parts before weighting."""

    total: Tensor
    soft: Tensor
    hard: Tensor


def standardized(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """z' = (z - mean(z)) / (eps + std(z)) per utterance (Sun et al. 2024, arXiv 2403.01427).

    Frees the student from matching the size of the teacher's logits. The confidence of the
    teacher goes with it, so recalibrate afterwards.
    """
    deviation = logits.std(dim=1, keepdim=True)
    return (logits - logits.mean(dim=1, keepdim=True)) / (eps + deviation)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(p_t(T) || p_s(T)) -> [B] (Hinton et al. 2015, arXiv 1503.02531).

    The sum over classes, so that its batch mean is torch's `batchmean`. T^2 keeps the size
    of the gradient, which tends to (z_s - z_t) / C for centred logits as T grows.

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> kd(student, teacher, temperature=2.0)
        tensor([0.3737])
    """
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=1)


def mean_squared(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_c (z_s - z_t)^2 -> [B], on raw outputs as published (Multi-Still 2023).

    Beside the label's MSE its gradient is that of one MSE to the mean of label and teacher
    output; it is here to compare with. Weight 0.5 gives half the published sum.
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

    TCKD is KL over (target, all others), NCKD is KL over the others renormalised. Hinton's
    KL is TCKD + (1 - p_t[target]) * NCKD, so alpha 1 with beta = 1 - p_t[target] is Hinton.

    Args:
        target: int64 [B], a class for every row.

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> dkd(student, teacher, target=torch.tensor([0]), temperature=2.0)
        tensor([1.2686])
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


def correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson correlation along `dim`; 0 where either side is constant."""
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

    The intra part looks at the rows it is given together: under data-parallel training or
    accumulation that is one worker's micro-batch, and with one row it is a constant.

    Examples:
        >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> dist(teacher, teacher, temperature=2.0).abs() < 1e-5
        tensor([True, True])
    """
    p_s = F.softmax(student / temperature, dim=1)
    p_t = F.softmax(teacher / temperature, dim=1)
    inter = 1.0 - correlation(p_s, p_t, dim=1)
    intra = 1.0 - correlation(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def soft_loss(
    student: Tensor,
    teacher: Tensor,
    shares: Tensor,
    winner: Tensor,
    *,
    loss: SoftLoss,
    temperature: float,
    standardize: bool = False,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
) -> Tensor:
    """The teacher's part of the loss, [B]."""
    teacher = teacher.detach()
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    if loss == "kd":
        return kd(student, teacher, temperature)
    if loss == "two-mse":
        return mean_squared(student, teacher)
    if loss == "dist":
        return dist(student, teacher, temperature)
    if loss == "dkd":
        target = winner.clamp(min=0)
        apart = dkd(student, teacher, target, temperature, dkd_alpha, dkd_beta)
        return torch.where(winner < 0, kd(student, teacher, temperature), apart)
    raise ValueError(f"there is no distillation loss `{loss}`")


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    shares: Tensor,
    winner: Tensor,
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
) -> DistillationTerms:
    """weight * soft + (1 - weight) * label loss, per utterance.

    Args:
        student_logits, teacher_logits, shares: [B, C]. winner: int64 [B], -1 on a tie.
        weight: of the teacher, 0 to 1; see `multistill.distillation.schedule` for one that
            changes over training.
        label_kind: for `two-mse` the label part is the published MSE whatever is asked.

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> shares, winner = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([-1])  # a tie
        >>> distillation_loss(student, teacher, shares, winner, weight=0.0).total
        tensor([1.2395])
        >>> distillation_loss(student, teacher, shares, winner, weight=1.0).total
        tensor([0.3737])
    """
    kind: LabelLoss = "mse" if loss == "two-mse" else label_kind
    hard = label_loss(student_logits, shares, winner, kind, label_source, class_weights)
    soft = soft_loss(
        student_logits,
        teacher_logits,
        shares,
        winner,
        loss=loss,
        temperature=temperature,
        standardize=standardize,
        dkd_alpha=dkd_alpha,
        dkd_beta=dkd_beta,
    )
    return DistillationTerms(weight * soft + (1.0 - weight) * hard, soft, hard)
