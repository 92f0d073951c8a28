"""Distillation losses: hand-computed values and the limits that their maths promises."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from multistill.config import DistillationConfig
from multistill.distillation.losses import (
    dist,
    distillation_loss,
    dkd,
    kd,
    soft_loss,
    standardized,
)
from multistill.distillation.representations import Hint, LinearCKA, linear_cka
from multistill.distillation.schedule import scheduled_weight
from multistill.models.losses import label_loss

LOSSES = ("kd", "two-mse", "dkd", "dist")
LN2, LN3 = math.log(2.0), math.log(3.0)
# softmax at T = 1: teacher [1/2, 1/4, 1/4], student [1/5, 3/5, 1/5]
TEACHER = torch.tensor([[LN2, 0.0, 0.0]])
STUDENT = torch.tensor([[0.0, LN3, 0.0]])


def batch(rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits (with gradient), teacher logits, shares and winners with ties, double."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * 2
    votes = torch.randint(0, 5, (rows, 7), generator=generator).double()
    votes[:, 0] += 1
    shares = votes / votes.sum(dim=1, keepdim=True)
    top = shares == shares.amax(dim=1, keepdim=True)
    winner = torch.where(top.sum(dim=1) == 1, shares.argmax(dim=1), -1)
    return student.requires_grad_(), teacher, shares, winner


def logits(rows: int = 3, size: float = 20.0) -> st.SearchStrategy[Tensor]:
    return arrays("float64", (rows, 7), elements=st.floats(-size, size)).map(torch.from_numpy)


def test_kd_has_the_value_computed_by_hand() -> None:
    kl = 0.5 * math.log(5 / 2) + 0.25 * math.log(5 / 12) + 0.25 * math.log(5 / 4)
    assert kd(STUDENT, TEACHER, 1.0).item() == pytest.approx(kl, rel=1e-5)
    # At T = 1/2 the logits double: teacher [4, 1, 1] / 6, student [1, 9, 1] / 11.
    kl = 4 / 6 * math.log(44 / 6) + 1 / 6 * math.log(11 / 54) + 1 / 6 * math.log(11 / 6)
    assert kd(STUDENT, TEACHER, 0.5).item() == pytest.approx(kl / 4, rel=1e-5)


def test_kd_sums_over_classes_as_batchmean_does() -> None:
    student, teacher, *_ = batch()
    library = torch.nn.functional.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(kd(student, teacher, 3.0).mean(), 9 * library)


def test_dkd_has_the_value_computed_by_hand() -> None:
    target = torch.tensor([0])
    tckd = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    nckd = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # [1/2, 1/2] and [3/4, 1/4]
    found = dkd(STUDENT, TEACHER, target, 1.0, alpha=2.0, beta=3.0)
    assert found.item() == pytest.approx(2 * tckd + 3 * nckd, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(logits(), logits(), st.floats(0.7, 8.0))
def test_dkd_takes_kd_apart(student: Tensor, teacher: Tensor, temperature: float) -> None:
    target = torch.tensor([0, 3, 6])
    away = 1 - (teacher / temperature).softmax(1)[torch.arange(3), target]
    tckd = dkd(student, teacher, target, temperature, 1.0, 0.0)
    nckd = dkd(student, teacher, target, temperature, 0.0, 1.0)
    whole = kd(student, teacher, temperature)
    torch.testing.assert_close(tckd + away * nckd, whole, atol=1e-6, rtol=1e-6)
    assert (tckd >= -1e-9).all()
    assert (nckd >= -1e-9).all()


def test_dkd_of_a_tied_utterance_is_hinton() -> None:
    student, teacher, shares, _ = batch(2)
    winner = torch.tensor([-1, 4])
    found = soft_loss(student, teacher, shares, winner, loss="dkd", temperature=2.0)
    plain = kd(student, teacher, 2.0)
    torch.testing.assert_close(found[0], plain[0])
    assert abs((found[1] - plain[1]).item()) > 1e-3


def test_dist_has_the_value_computed_by_hand() -> None:
    # Two utterances, softmax by hand: teacher [[.5,.25,.25],[.25,.5,.25]], student swapped rows.
    teacher = torch.tensor([[LN2, 0.0, 0.0], [0.0, LN2, 0.0]])
    student = teacher.flip(0)
    # Rows: deviations (1/6, -1/12, -1/12) and (-1/12, 1/6, -1/12): correlation -1/2.
    # Columns: -1, -1, and the constant third column counts as 0.
    expected = (1 + 0.5) + (1 + 2 / 3)
    found = dist(student, teacher, 1.0)
    torch.testing.assert_close(found, torch.tensor([expected, expected]))
    # At T = 2 the softmax changes, the symmetries and with them the correlations do not.
    torch.testing.assert_close(dist(student, teacher, 2.0), torch.tensor([4 * expected] * 2))


@settings(deadline=None, max_examples=50)
@given(logits(), st.floats(-5, 5), st.floats(0.1, 10))
def test_standardised_logits_do_not_know_shift_and_scale(
    values: Tensor, shift: float, scale: float
) -> None:
    spread = values.std(dim=1)
    if (spread < 0.1).any():
        return
    plain = standardized(values)
    torch.testing.assert_close(standardized(values * scale + shift), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.mean(dim=1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(
        plain.std(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_standardisation_modifies_every_loss() -> None:
    student, teacher, shares, winner = batch()
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "temperature": 2.0}
        plain = soft_loss(student, teacher, shares, winner, **options)
        scaled = soft_loss(student, teacher, shares, winner, standardize=True, **options)
        by_hand = soft_loss(standardized(student), standardized(teacher), shares, winner, **options)
        torch.testing.assert_close(scaled, by_hand)
        assert (plain - scaled).abs().max() > 1e-3


def test_the_published_two_mse_is_one_mse_to_the_mean_of_label_and_teacher() -> None:
    student, teacher, shares, winner = batch()
    terms = distillation_loss(student, teacher, shares, winner, loss="two-mse", weight=0.5)
    published = ((student - shares) ** 2).mean() + ((student - teacher) ** 2).mean()
    torch.testing.assert_close(2 * terms.total.mean(), published)
    (gradient,) = torch.autograd.grad(terms.total.sum(), student)
    middle = ((student - (shares + teacher) / 2) ** 2).mean(dim=1).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(middle, student)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_no_teacher_and_weight_one_is_teacher_only(loss: str) -> None:
    student, teacher, shares, winner = batch()
    options: dict[str, Any] = {"loss": loss, "temperature": 3.0, "label_kind": "focal"}

    def total(weight: float) -> Tensor:
        terms = distillation_loss(student, teacher, shares, winner, weight=weight, **options)
        return terms.total

    label = label_loss(student, shares, winner, "mse" if loss == "two-mse" else "focal")
    taught = soft_loss(student, teacher, shares, winner, loss=loss, temperature=3.0)  # type: ignore[arg-type]
    assert torch.equal(total(0.0), label)
    assert torch.equal(total(1.0), taught)
    for end, inside in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        torch.testing.assert_close(total(end), total(inside), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total(0.25), 0.25 * taught + 0.75 * label)


@pytest.mark.parametrize(("loss", "standardize"), [*product(LOSSES, (False, True))])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(
    loss: str, standardize: bool
) -> None:
    _, teacher, shares, winner = batch()
    student = teacher.clone().requires_grad_()
    value = soft_loss(
        student, teacher, shares, winner, loss=loss, temperature=2.0, standardize=standardize
    )  # type: ignore[arg-type]
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.abs().max() < 1e-7


def test_the_gradient_keeps_its_size_over_temperatures() -> None:
    student, teacher, *_ = batch(64)
    sizes = []
    for temperature in (4.0, 8.0, 16.0, 64.0):
        (gradient,) = torch.autograd.grad(kd(student, teacher, temperature).sum(), student)
        sizes.append(gradient.norm().item())
    assert max(sizes) / min(sizes) < 1.25
    # The limit: centred difference over the number of classes.
    centred = student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)
    (gradient,) = torch.autograd.grad(kd(student, teacher, 1e4).sum(), student)
    torch.testing.assert_close(gradient, centred.detach() / 7, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("loss", "standardize"), [*product(LOSSES, (False, True))])
@pytest.mark.filterwarnings("ignore:std")  # of no rows
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_flat_and_extreme_logits_give_finite_losses_and_gradients(
    loss: str, standardize: bool, rows: int
) -> None:
    shares = torch.full((rows, 7), 1 / 7)
    winner = torch.tensor([-1, 0, 3, 6, 2])[:rows]
    for student, teacher in product((0.0, 1.0, 300.0), repeat=2):
        values = (student * torch.eye(7)[:rows]).requires_grad_()
        taught = (teacher * torch.eye(7).flip(0)[:rows]).requires_grad_()
        terms = distillation_loss(
            values, taught, shares, winner, loss=loss, standardize=standardize
        )  # type: ignore[arg-type]
        assert terms.total.shape == (rows,)
        assert terms.total.isfinite().all()
        terms.total.sum().backward()
        assert values.grad is not None
        assert values.grad.isfinite().all()
        assert taught.grad is None


def test_no_utterance_changes_the_loss_of_another_but_in_dist() -> None:
    student, teacher, shares, winner = batch()
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "temperature": 2.0}
        whole = soft_loss(student, teacher, shares, winner, **options)
        part = soft_loss(student[:2], teacher[:2], shares[:2], winner[:2], **options)
        assert torch.allclose(whole[:2], part) == (loss != "dist")


def test_defaults_are_those_of_the_job_file() -> None:
    student, teacher, shares, winner = batch()
    config = DistillationConfig()
    for loss in ("kd", "dkd"):
        explicit = distillation_loss(
            student,
            teacher,
            shares,
            winner,
            loss=loss,  # type: ignore[arg-type]
            temperature=config.temperature,
            weight=config.weight,
            standardize=config.standardize,
            dkd_alpha=config.dkd_alpha,
            dkd_beta=config.dkd_beta,
        )
        default = distillation_loss(student, teacher, shares, winner, loss=loss)  # type: ignore[arg-type]
        assert torch.equal(explicit.total, default.total)


def test_schedules_start_and_end_where_they_say() -> None:
    assert [scheduled_weight(0.6, "fixed", p) for p in (0.0, 0.5, 1.0)] == [0.6, 0.6, 0.6]
    rise = [scheduled_weight(0.6, "rise", p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)]
    assert rise == pytest.approx([0.0, 0.3, 0.6, 0.6])
    fall = [scheduled_weight(0.6, "fall", p, 0.2) for p in (0.0, 0.8, 0.9, 1.0)]
    assert fall == pytest.approx([0.6, 0.6, 0.3, 0.0])


# --- representations ---


def test_hint_has_the_value_computed_by_hand_and_learns_the_teacher_space() -> None:
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


def test_every_teacher_has_a_space_and_a_projection_of_its_own() -> None:
    hint = Hint(2, 2, spaces=2)
    with torch.no_grad():  # the second space is the first one turned over
        hint.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]])
    teacher = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    value = hint(student, teacher, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(value, torch.tensor([0.0, 0.0, 9.0]))


def test_cka_compares_the_rows_of_one_teacher_only() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(24, 3), torch.randn(24, 5)
    space = torch.tensor([0, 1, 1, 2] * 6)
    value = LinearCKA(4)(student, teacher, space)
    for one in range(3):
        rows = space == one
        alone = 1 - linear_cka(student[rows], teacher[rows])
        torch.testing.assert_close(value[rows], alone.expand(int(rows.sum())))


def test_an_ensemble_side_by_side_has_the_sum_of_the_members_gram_matrices() -> None:
    torch.manual_seed(0)
    student, one, two = torch.randn(16, 3), torch.randn(16, 4), torch.randn(16, 4)

    def gram(states: torch.Tensor) -> torch.Tensor:
        centred = states - states.mean(0)
        return centred @ centred.T

    a, b = gram(student), gram(one) + gram(two)
    expected = (a * b).sum() / (a.norm() * b.norm())
    torch.testing.assert_close(linear_cka(student, torch.cat((one, two), dim=1)), expected)


def test_cka_has_the_value_computed_by_hand() -> None:
    a = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    # a'b = (1, -1), a'a = 2, b'b = 2 I: 2 / (2 * 2 sqrt 2).
    assert linear_cka(a, b).item() == pytest.approx(1 / (2 * math.sqrt(2)), rel=1e-5)


def test_cka_does_not_know_rotation_scale_and_shift_but_width() -> None:
    torch.manual_seed(0)
    states = torch.randn(64, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    assert linear_cka(states, 3 * states @ rotation + 7).item() == pytest.approx(1.0, abs=1e-5)
    other = torch.randn(64, 9)
    assert linear_cka(states, other).item() == pytest.approx(linear_cka(other, states).item())
    assert 0 <= linear_cka(states, other).item() < 0.3
    loss = LinearCKA()(states, other)
    assert loss.shape == (64,)
    torch.testing.assert_close(loss, (1 - linear_cka(states, other)).expand(64))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_representation_losses_of_few_or_constant_rows_are_finite(rows: int) -> None:
    for loss in (Hint(4, 2), LinearCKA(), Hint(4, 2, spaces=3), LinearCKA(3)):
        student = torch.ones(rows, 4, requires_grad=True)
        space = torch.arange(rows) if loss.spaces == 3 else None
        value = loss(student, torch.ones(rows, 2), space)
        assert value.shape == (rows,)
        assert value.isfinite().all()
        value.sum().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
