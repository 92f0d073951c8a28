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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multistill.models.losses import LabelLoss, LabelSource, label_loss


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

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> kd(student, teacher, temperature=2.0)
        tensor([0.3737])
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

    Examples:
        >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> dist(teacher, teacher, temperature=2.0).abs() < 1e-5
        tensor([True, True])
    """
    p_s = F.softmax(student / temperature, dim=1)
    p_t = F.softmax(teacher / temperature, dim=1)
    inter = 1.0 - pearson(p_s, p_t, dim=1)
    intra = 1.0 - pearson(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@dataclass(frozen=True)
class LossInputs:
    """What a distillation loss compares.

    Attributes:
        student, teacher: logits [B, C]; the teacher's carry no gradient.
        labels: int64 [B], -1 on a tie.
        dkd_alpha, dkd_beta: weights of `dkd`.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: float
    dkd_alpha: float
    dkd_beta: float


def _dkd_or_kd(inputs: LossInputs) -> Tensor:
    """`dkd`, and `kd` for ties, which have no target class."""
    student, teacher, temperature = inputs.student, inputs.teacher, inputs.temperature
    target = inputs.labels.clamp(min=0)
    decoupled = dkd(student, teacher, target, temperature, inputs.dkd_alpha, inputs.dkd_beta)
    return torch.where(inputs.labels < 0, kd(student, teacher, temperature), decoupled)


TEACHER_LOSSES: Mapping[str, Callable[[LossInputs], Tensor]] = {
    "kd": lambda inputs: kd(inputs.student, inputs.teacher, inputs.temperature),
    "two-mse": lambda inputs: mse(inputs.student, inputs.teacher),
    "dist": lambda inputs: dist(inputs.student, inputs.teacher, inputs.temperature),
    "dkd": _dkd_or_kd,
}
"""`distillation.loss` of a job file -> loss of each utterance [B]."""


def teacher_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    loss: str,
    temperature: float,
    standardize: bool = False,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
) -> Tensor:
    """The teacher's loss [B]; `labels` [B], -1 on a tie, are used by `dkd` only."""
    if loss not in TEACHER_LOSSES:
        raise ValueError(f"unknown distillation loss `{loss}`")
    teacher = teacher.detach()
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    return TEACHER_LOSSES[loss](
        LossInputs(student, teacher, labels, temperature, dkd_alpha, dkd_beta)
    )


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    shares: Tensor,
    labels: Tensor,
    *,
    loss: str = "kd",
    temperature: float = 2.0,
    weight: float = 0.5,
    standardize: bool = False,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
    label_kind: LabelLoss = "soft-cross-entropy",
    label_source: LabelSource = "shares",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    label_weights: Tensor | None = None,
    teacher_weights: Tensor | None = None,
) -> Tensor:
    """weight * teacher's loss + (1 - weight) * label loss, per utterance [B].

    Args:
        student_logits, teacher_logits, shares: [B, C]. labels: int64 [B], -1 on a tie.
        weight: of the teacher's loss, 0 to 1; `multistill.distillation.schedule` varies it over
            training.
        label_kind: ignored for `two-mse`, whose label loss is always the published MSE.
        label_smoothing: of the label loss's target; the teacher's outputs are soft already.
        label_weights: [B], factor of the label loss; 0 for an utterance without label, whose
            `labels` is -1 and whose `shares` do not matter, but are finite.
        teacher_weights: [B], factor of the teacher's loss; utterances of 0 are not compared with
            the teacher, nor do they count in the intra-class term of `dist`.

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> shares, labels = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([-1])  # a tie
        >>> distillation_loss(student, teacher, shares, labels, weight=0.0)
        tensor([1.2395])
        >>> distillation_loss(student, teacher, shares, labels, weight=1.0)
        tensor([0.3737])
    """
    kind: LabelLoss = "mse" if loss == "two-mse" else label_kind
    hard = label_loss(
        student_logits, shares, labels, kind, label_source, class_weights, label_smoothing
    )
    if label_weights is not None:
        hard = hard * label_weights

    def of_teacher(rows: slice | Tensor) -> Tensor:
        return teacher_loss(
            student_logits[rows],
            teacher_logits[rows],
            labels[rows],
            loss=loss,
            temperature=temperature,
            standardize=standardize,
            dkd_alpha=dkd_alpha,
            dkd_beta=dkd_beta,
        )

    if teacher_weights is None:
        soft = of_teacher(slice(None))
    else:
        soft = torch.zeros_like(hard)
        compared = teacher_weights.nonzero()[:, 0]
        if len(compared):
            weighted = of_teacher(compared) * teacher_weights[compared]
            soft = soft.index_put((compared,), weighted)
    return weight * soft + (1.0 - weight) * hard
