"""Losses that match the pooled states of student and teacher, h_s [B, D_s] and h_t [B, D_t].

The pooled state is the input of the classifier. Both modules map (h_s, h_t) to [B], to be
added to the loss on logits with a weight of their own. The teacher's states carry no gradient.

The states of different teachers, including out-of-fold teachers, lie in unrelated spaces. So
`space`, int64 [B], holds the index of the teacher that each row's h_t comes from: a hint learns
one projection per space, and CKA compares only rows of the same space. An ensemble is one
space, with the states of its members concatenated: its hint is the mean of the members' hints,
and CKA compares with the sum of the members' Gram matrices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Hint(nn.Module):
    """mean_d (W h_s - h_t)_d^2, W learned with the student (FitNets, Romero et al. 2015, eq. 3).

    W is discarded after training; with it, student and teacher may differ in width.

    Args:
        num_spaces: number of teachers' spaces; each has its own W.
    """

    def __init__(self, student_dim: int, teacher_dim: int, num_spaces: int = 1) -> None:
        super().__init__()
        self.num_spaces = num_spaces
        self.projection = nn.Linear(student_dim, num_spaces * teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, space: Tensor | None = None) -> Tensor:
        """student [B, D_s], teacher [B, D_t], space [B] (None: all 0) -> [B]."""
        projected = self.projection(student)
        if space is not None:
            per_space = projected.unflatten(-1, (self.num_spaces, teacher.shape[1]))
            projected = per_space[torch.arange(len(space), device=space.device), space]
        difference: Tensor = projected - teacher.detach()
        return (difference**2).mean(dim=1)


class LinearCKA(nn.Module):
    """1 - linear centred kernel alignment (CKA) of the rows of a space; equal for all its rows.

        CKA = ||A' B||_F^2 / (||A' A||_F * ||B' B||_F), columns centred
                                                           (Kornblith et al. 2019, eq. 5)

    CKA lies in [0, 1] and is invariant to rotation and isotropic scaling of either side, so no
    projection is needed. Few rows overestimate it: use batches of 64 rows or more per space. It
    is 0 if either side is constant, as with a single row.
    """

    def __init__(self, num_spaces: int = 1) -> None:
        super().__init__()
        self.num_spaces = num_spaces

    def forward(self, student: Tensor, teacher: Tensor, space: Tensor | None = None) -> Tensor:
        """student [B, D_s], teacher [B, D_t], space [B] (None: all 0) -> [B]."""
        if space is None:
            space = torch.zeros(len(student), dtype=torch.int64, device=student.device)
        member = F.one_hot(space, self.num_spaces).float()
        return member @ (1.0 - _cka(student, teacher.detach(), member))


def _cka(a: Tensor, b: Tensor, member: Tensor) -> Tensor:
    """CKA [K] of each group of rows; member [B, K] is 1 where a row belongs to a group.

    Computed from the [B, B] Gram matrices, which are smaller than [D, D] for our batch sizes.
    """
    size = member.sum(dim=0).clamp(min=1.0)[:, None]

    def gram(states: Tensor) -> Tensor:
        states = states.float()
        centred = states - member @ ((member.T @ states) / size)
        return centred @ centred.T

    def within(product: Tensor) -> Tensor:
        return (member * (product @ member)).sum(dim=0)

    gram_a, gram_b = gram(a), gram(b)
    # Clamp before sqrt, whose derivative at 0 is infinite: a group may be empty or constant.
    norm_a, norm_b = (within(g * g).clamp(min=1e-24).sqrt() for g in (gram_a, gram_b))
    return within(gram_a * gram_b) / (norm_a * norm_b).clamp(min=1e-12)
