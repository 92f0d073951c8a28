"""Losses that match the states of student and teacher, of pooled ones h_s [B, D_s], h_t [B, D_t].

The pooled state is the input of the classifier. The modules map (h_s, h_t) to [B], to be
added to the loss on logits with a weight of their own. The teacher's states carry no gradient.
`SequenceHint` does so with the sequences that are pooled.

The states of different teachers, including out-of-fold teachers, lie in unrelated spaces. So
`space`, int64 [B], holds the index of the teacher that each row's h_t comes from: a hint learns
one projection per space, and CKA compares only rows of the same space. An ensemble is one
space, with the states of its members concatenated: its hint is the mean of the members' hints,
CKA compares with the sum of the members' Gram matrices, and relations are in their common space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multistill.models.sequences import segment_means


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


class SequenceHint(nn.Module):
    """mean_{t, d} (W h_s[t] - h_t[t])_d^2 over the segments of a clip, W learned with the student.

    The student's sequence is averaged into as many segments as the teacher's has, so the two may
    have different rates (`multistill.models.sequences`). W is discarded after training.

    Args:
        num_spaces: number of teachers' spaces; each has its own W.
    """

    def __init__(self, student_dim: int, teacher_dim: int, num_spaces: int = 1) -> None:
        super().__init__()
        self.num_spaces = num_spaces
        self.projection = nn.Linear(student_dim, num_spaces * teacher_dim, bias=False)

    def forward(
        self, student: Tensor, mask: Tensor, teacher: Tensor, lengths: Tensor, space: Tensor
    ) -> Tensor:
        """Losses [B]; 0 for a clip of which either has no states, such as a dropped modality.

        Args:
            student: [B, T, D_s], and its mask [B, T].
            teacher: [B, n, D_t], of which each row has `lengths` [B].
            space: int64 [B].
        """
        width = teacher.shape[1]
        means = segment_means(student, mask, lengths, width)
        weight = self.projection.weight.unflatten(0, (self.num_spaces, -1))[space]
        error = (means @ weight.transpose(1, 2) - teacher.detach()).square().mean(dim=2)
        position = torch.arange(width, device=error.device)
        valid = (position < lengths[:, None]) & mask.any(dim=1, keepdim=True)
        return (error * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


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


class Relations(nn.Module):
    """Distances and angles between the rows of a space (RKD, Park et al. 2019, eq. 5 to 9).

        L = mean_{i != j} huber(d_s(i, j) - d_t(i, j)) + 2 mean_{i, j, k} huber(c_s - c_t)

    d(i, j) is the distance of two rows over the mean distance in the space, c(i, j, k) the cosine
    of the angle at row j, both of three different rows, huber that of threshold 1. The angles
    count twice as much, as in the paper. Neither depends on rotation or scale, so no projection is
    needed. A space of one row has no relations and a loss of 0, one of two rows no angles. Angles
    take B^3 values per space.
    """

    def __init__(self, num_spaces: int = 1) -> None:
        super().__init__()
        self.num_spaces = num_spaces

    def forward(self, student: Tensor, teacher: Tensor, space: Tensor | None = None) -> Tensor:
        """student [B, D_s], teacher [B, D_t], space [B] (None: all 0) -> [B], equal in a space."""
        if space is None:
            space = torch.zeros(len(student), dtype=torch.int64, device=student.device)
        losses = student.new_zeros(len(student))
        for number in range(self.num_spaces):
            rows = (space == number).nonzero()[:, 0]
            if len(rows) > 1:
                loss = _relations(student[rows].float(), teacher[rows].detach().float())
                losses = losses.index_put((rows,), loss.to(losses.dtype).expand(len(rows)))
        return losses


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of all rows [n, D], a scalar."""
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    # Rows that coincide have no direction: the square root's derivative at 0 is infinite.
    found = []
    for states in (student, teacher):
        difference = states[None] - states[:, None]
        distance = difference.square().sum(dim=2).clamp(min=1e-12).sqrt()
        mean = distance[apart].mean().clamp(min=1e-6)
        direction = difference / distance[:, :, None]
        found.append((distance / mean, direction @ direction.transpose(1, 2)))
    (distance_s, angle_s), (distance_t, angle_t) = found
    loss = F.smooth_l1_loss(distance_s[apart], distance_t[apart])
    three = apart[:, :, None] & apart[:, None, :] & apart[None]
    if three.any():
        loss = loss + 2 * F.smooth_l1_loss(angle_s[three], angle_t[three])
    return loss


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
