"""Losses on pooled states: hand-computed values and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multistill.distillation.representations import Hint, LinearCKA


def cka(a: Tensor, b: Tensor) -> Tensor:
    """CKA of all rows, a scalar."""
    return 1 - LinearCKA()(a, b)[0]


def test_a_hint_has_the_value_computed_by_hand_and_gradients_for_the_projection() -> None:
    hint = Hint(2, 3)
    with torch.no_grad():
        hint.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]], requires_grad=True)
    value = hint(student, teacher)
    torch.testing.assert_close(value, torch.tensor([13 / 3, 3.0]))
    value.sum().backward()
    assert teacher.grad is None
    assert hint.projection.weight.grad is not None
    assert list(LinearCKA().parameters()) == []


def test_each_teachers_space_has_its_own_projection() -> None:
    hint = Hint(2, 2, num_spaces=2)
    with torch.no_grad():  # the second projection swaps the dimensions
        hint.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]])
    teacher = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    value = hint(student, teacher, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(value, torch.tensor([0.0, 0.0, 9.0]))


def test_cka_compares_only_rows_of_the_same_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(24, 3), torch.randn(24, 5)
    space = torch.tensor([0, 1, 1, 2] * 6)
    value = LinearCKA(4)(student, teacher, space)
    for one in range(3):
        rows = space == one
        separate = 1 - cka(student[rows], teacher[rows])
        torch.testing.assert_close(value[rows], separate.expand(int(rows.sum())))


def test_cka_with_concatenated_members_compares_with_the_sum_of_their_gram_matrices() -> None:
    torch.manual_seed(0)
    student, one, two = torch.randn(16, 3), torch.randn(16, 4), torch.randn(16, 4)

    def gram(states: torch.Tensor) -> torch.Tensor:
        centred = states - states.mean(0)
        return centred @ centred.T

    a, b = gram(student), gram(one) + gram(two)
    expected = (a * b).sum() / (a.norm() * b.norm())
    torch.testing.assert_close(cka(student, torch.cat((one, two), dim=1)), expected)


def test_cka_has_the_value_computed_by_hand() -> None:
    a = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    # a'b = (1, -1), a'a = 2, b'b = 2 I: 2 / (2 * 2 sqrt 2).
    assert cka(a, b).item() == pytest.approx(1 / (2 * math.sqrt(2)), rel=1e-5)


def test_cka_is_invariant_to_rotation_scale_and_shift_and_is_symmetric() -> None:
    torch.manual_seed(0)
    states = torch.randn(64, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    assert cka(states, 3 * states @ rotation + 7).item() == pytest.approx(1.0, abs=1e-5)
    other = torch.randn(64, 9)
    assert cka(states, other).item() == pytest.approx(cka(other, states).item())
    assert 0 <= cka(states, other).item() < 0.3
    loss = LinearCKA()(states, other)
    assert loss.shape == (64,)
    torch.testing.assert_close(loss, (1 - cka(states, other)).expand(64))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_losses_of_few_or_constant_rows_are_finite(rows: int) -> None:
    for loss in (Hint(4, 2), LinearCKA(), Hint(4, 2, num_spaces=3), LinearCKA(3)):
        student = torch.ones(rows, 4, requires_grad=True)
        space = torch.arange(rows) if loss.num_spaces == 3 else None
        value = loss(student, torch.ones(rows, 2), space)
        assert value.shape == (rows,)
        assert value.isfinite().all()
        value.sum().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
