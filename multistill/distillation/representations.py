"""Losses that match the pooled states of student and teacher, h_s [B, D_s] and h_t [B, D_t].

The pooled state is the vector that the classifier reads. Both modules map (h_s, h_t) to
[B], to be added to the loss on logits with a weight of their own. The teacher's states
carry no gradient.

The states of two teachers have nothing to do with each other, out-of-fold ones included. So
every row says which teacher's space it lies in (`space`, int64 [B]): a hint learns one
projection per space, CKA compares the rows of one space with each other. An ensemble is one
space, the members' states side by side: the hint is then the mean of the members' hints,
and CKA compares with the sum of their Gram matrices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Hint(nn.Module):
    """mean_d (W h_s - h_t)_d^2, W learnt with the student (FitNets, Romero et al. 2015, eq. 3).

    W is thrown away after the training; it lets student and teacher differ in width.

    Args:
        spaces: number of teachers' spaces, each with a W of its own.
    """

    def __init__(self, student_dim: int, teacher_dim: int, spaces: int = 1) -> None:
        super().__init__()
        self.spaces = spaces
        self.projection = nn.Linear(student_dim, spaces * teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, space: Tensor | None = None) -> Tensor:
        """student [B, D_s], teacher [B, D_t], space [B] (None: all 0) -> [B]."""
        projected = self.projection(student)
        if space is not None:
            each = projected.unflatten(-1, (self.spaces, teacher.shape[1]))
            projected = each[torch.arange(len(space), device=space.device), space]
        difference: Tensor = projected - teacher.detach()
        return (difference**2).mean(dim=1)


class LinearCKA(nn.Module):
    """1 - linear CKA of the rows that share a space, the same for each of them."""

    def __init__(self, spaces: int = 1) -> None:
        super().__init__()
        self.spaces = spaces

    def forward(self, student: Tensor, teacher: Tensor, space: Tensor | None = None) -> Tensor:
        """student [B, D_s], teacher [B, D_t], space [B] (None: all 0) -> [B]."""
        if space is None:
            space = torch.zeros(len(student), dtype=torch.int64, device=student.device)
        member = F.one_hot(space, self.spaces).float()
        return member @ (1.0 - _cka(student, teacher.detach(), member))


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of the same rows in two spaces, a scalar in [0, 1].

        ||A' B||_F^2 / (||A' A||_F * ||B' B||_F), columns centred     (Kornblith et al. 2019, eq. 5)

    Unchanged by rotation and by isotropic scaling of either space, so it needs no projection.
    Few rows overestimate it: give it batches of 64 or more. 0 where a side is constant (one
    row, for instance).
    """
    return _cka(a, b, torch.ones(len(a), 1, device=a.device))[0]


def _cka(a: Tensor, b: Tensor, member: Tensor) -> Tensor:
    """CKA [K] of each group of rows; member [B, K] has a 1 where a row is in a group.

    Computed on the [B, B] Gram matrices, which are smaller than [D, D] for our batches.
    """
    size = member.sum(dim=0).clamp(min=1.0)[:, None]

    def gram(states: Tensor) -> Tensor:
        states = states.float()
        centred = states - member @ ((member.T @ states) / size)
        return centred @ centred.T

    def within(product: Tensor) -> Tensor:
        return (member * (product @ member)).sum(dim=0)

    gram_a, gram_b = gram(a), gram(b)
    # Clamped before the root, whose slope at 0 is infinite: a group may be empty or constant.
    norm_a, norm_b = (within(g * g).clamp(min=1e-24).sqrt() for g in (gram_a, gram_b))
    return within(gram_a * gram_b) / (norm_a * norm_b).clamp(min=1e-12)
