"""Losses on pooled states: hand-computed values and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.encoder_states import random_states
from torch import Tensor

from multistill.distillation.representations import Hint, LinearCKA, Relations, SequenceHint


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


def test_a_sequence_hint_compares_segments_at_the_teachers_rate() -> None:
    """By hand: four frames of the student are two segments, whose means the teacher has."""
    hint = SequenceHint(1, 1)
    with torch.no_grad():
        hint.projection.weight.fill_(2.0)
    student = torch.tensor([[[1.0], [3.0], [5.0], [7.0]], [[1.0], [3.0], [9.0], [9.0]]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    teacher = torch.tensor([[[4.0], [13.0]], [[0.0], [99.0]]])  # the padding is not read
    space = torch.zeros(2, dtype=torch.int64)
    value = hint(student, mask, teacher, torch.tensor([2, 1]), space)
    torch.testing.assert_close(value, torch.tensor([(0 + 1) / 2, 16.0]))


def test_a_sequence_hint_ignores_padding_and_clips_of_which_one_side_has_nothing() -> None:
    torch.manual_seed(0)
    hint = SequenceHint(3, 4, num_spaces=2)
    student, mask = random_states([7, 0, 5], 3)
    teacher = torch.randn(3, 2, 4)
    lengths, space = torch.tensor([2, 2, 0]), torch.tensor([0, 1, 1])
    clean = student.nan_to_num(0.0)
    value = hint(clean, mask, teacher, lengths, space)
    assert value[0] > 0 and not value[1:].any()
    longer = torch.cat([clean, torch.randn(3, 4, 3)], dim=1)
    wider = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    padded = torch.cat([teacher, torch.randn(3, 1, 4)], dim=1)
    torch.testing.assert_close(hint(longer, wider, padded, lengths, space), value)


def test_each_teachers_sequences_have_their_own_projection() -> None:
    torch.manual_seed(0)
    both = SequenceHint(3, 4, num_spaces=2)
    student, mask = torch.randn(4, 6, 3), torch.ones(4, 6, dtype=torch.bool)
    teacher, lengths = torch.randn(4, 2, 4), torch.tensor([2, 2, 2, 2])
    value = both(student, mask, teacher, lengths, torch.tensor([0, 1, 0, 1]))
    for number in range(2):
        own = SequenceHint(3, 4)
        with torch.no_grad():
            own.projection.weight.copy_(both.projection.weight[4 * number : 4 * number + 4])
        zero = torch.zeros(4, dtype=torch.int64)
        expected = own(student, mask, teacher, lengths, zero)
        torch.testing.assert_close(value[number::2], expected[number::2])


def test_relations_have_the_value_computed_by_hand() -> None:
    """A right angle of the teacher that the student has stretched to a line."""
    teacher = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[1.0], [0.0], [-1.0]])
    mean_t, mean_s = (2 + math.sqrt(2)) / 3, 4 / 3
    distances = [(1 / mean_s - 1 / mean_t), (2 / mean_s - math.sqrt(2) / mean_t)]
    distance = (2 * 0.5 * distances[0] ** 2 + 0.5 * distances[1] ** 2) / 3
    half = math.sqrt(0.5)
    # At the corner the cosines are 0 and -1, at both ends cos 45 degrees and 1.
    angle = (0.5 * 1.0**2 + 2 * 0.5 * (1 - half) ** 2) / 3
    value = Relations()(student, teacher)
    torch.testing.assert_close(value, torch.full((3,), distance + 2 * angle))


def test_relations_do_not_depend_on_rotation_shift_and_scale() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(12, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    alike = 3 * teacher @ rotation + 1
    torch.testing.assert_close(Relations()(alike, teacher), torch.zeros(12), atol=1e-5, rtol=0)
    assert (Relations()(torch.randn(12, 5), teacher) > 0.01).all()


def test_relations_are_those_of_the_rows_of_a_teacher_and_their_gradients_are_finite() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(9, 3, requires_grad=True), torch.randn(9, 5)
    space = torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, 3])
    space[-1] = 2
    value = Relations(4)(student, teacher, space)
    for number in (0, 1, 2):
        rows = space == number
        expected = Relations()(student[rows], teacher[rows])
        torch.testing.assert_close(value[rows], expected)
    alone = Relations()(student[:1], teacher[:1])
    assert not alone.any()
    equal = torch.zeros(4, 3, requires_grad=True)  # rows that coincide
    (value.sum() + Relations()(equal, teacher[:4]).sum()).backward()
    assert student.grad is not None and equal.grad is not None
    assert student.grad.isfinite().all() and equal.grad.isfinite().all()
