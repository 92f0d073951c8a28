"""Losses that match the pooled states of student and teacher, h_s [B, D_s] and h_t [B, D_t].

Both modules map (h_s, h_t) to [B], to be added to the loss on logits with a weight of their
own. The teacher's states carry no gradient. They need one teacher: the pooled spaces of
several teachers, out-of-fold ones too, have nothing to do with each other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Hint(nn.Module):
    """mean_d (W h_s - h_t)_d^2, W learnt with the student (FitNets, Romero et al. 2015, eq. 3).

    W is thrown away after the training; it lets student and teacher differ in width.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        difference: Tensor = self.projection(student) - teacher.detach()
        return (difference**2).mean(dim=1)


class LinearCKA(nn.Module):
    """1 - linear CKA of the batch, the same value for each row; see `linear_cka`."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (1.0 - linear_cka(student, teacher.detach())).expand(student.shape[0])


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of the same rows in two spaces, a scalar in [0, 1].

        ||A' B||_F^2 / (||A' A||_F * ||B' B||_F), columns centred     (Kornblith et al. 2019, eq. 5)

    Unchanged by rotation and by isotropic scaling of either space, so it needs no projection.
    Few rows overestimate it: give it batches of 64 or more. 0 where a side is constant (one
    row, for instance).

    Computed on the [B, B] Gram matrices, which are smaller than [D, D] for our batches.
    """
    gram_a, gram_b = _centred_gram(a), _centred_gram(b)
    size = torch.linalg.matrix_norm(gram_a) * torch.linalg.matrix_norm(gram_b)
    return (gram_a * gram_b).sum() / size.clamp(min=1e-12)


def _centred_gram(states: Tensor) -> Tensor:
    centred = states.float() - states.float().mean(dim=0, keepdim=True)
    return centred @ centred.T


def representation_loss(
    kind: Literal["hint", "cka"], student_dim: int, teacher_dim: int
) -> nn.Module:
    """The loss by name; a hint has weights to train beside the student's."""
    if kind == "hint":
        return Hint(student_dim, teacher_dim)
    if kind == "cka":
        return LinearCKA()
    raise ValueError(f"there is no representation loss `{kind}`")
