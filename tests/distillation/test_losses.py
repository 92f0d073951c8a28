"""Distillation losses on logits: hand-computed values, identities and limits."""

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
    standardized,
    teacher_loss,
)
from multistill.models.losses import label_loss

LOSSES = ("kd", "two-mse", "dkd", "dist")
LN2, LN3 = math.log(2.0), math.log(3.0)
# softmax at T = 1: teacher [1/2, 1/4, 1/4], student [1/5, 3/5, 1/5]
TEACHER = torch.tensor([[LN2, 0.0, 0.0]])
STUDENT = torch.tensor([[0.0, LN3, 0.0]])


def batch(rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits (with gradient), teacher logits, shares and labels with ties, in double."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * 2
    votes = torch.randint(0, 5, (rows, 7), generator=generator).double()
    votes[:, 0] += 1
    shares = votes / votes.sum(dim=1, keepdim=True)
    top = shares == shares.amax(dim=1, keepdim=True)
    labels = torch.where(top.sum(dim=1) == 1, shares.argmax(dim=1), -1)
    return student.requires_grad_(), teacher, shares, labels


def random_logits(rows: int = 3, size: float = 20.0) -> st.SearchStrategy[Tensor]:
    return arrays("float64", (rows, 7), elements=st.floats(-size, size)).map(torch.from_numpy)


def test_kd_has_the_value_computed_by_hand() -> None:
    kl = 0.5 * math.log(5 / 2) + 0.25 * math.log(5 / 12) + 0.25 * math.log(5 / 4)
    assert kd(STUDENT, TEACHER, 1.0).item() == pytest.approx(kl, rel=1e-5)
    # At T = 1/2 the logits double: teacher [4, 1, 1] / 6, student [1, 9, 1] / 11.
    kl = 4 / 6 * math.log(44 / 6) + 1 / 6 * math.log(11 / 54) + 1 / 6 * math.log(11 / 6)
    assert kd(STUDENT, TEACHER, 0.5).item() == pytest.approx(kl / 4, rel=1e-5)


def test_the_mean_of_kd_equals_kl_div_with_batchmean() -> None:
    student, teacher, *_ = batch()
    expected = torch.nn.functional.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(kd(student, teacher, 3.0).mean(), 9 * expected)


def test_dkd_has_the_value_computed_by_hand() -> None:
    target = torch.tensor([0])
    tckd = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    nckd = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # [1/2, 1/2] and [3/4, 1/4]
    value = dkd(STUDENT, TEACHER, target, 1.0, alpha=2.0, beta=3.0)
    assert value.item() == pytest.approx(2 * tckd + 3 * nckd, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(random_logits(), random_logits(), st.floats(0.7, 8.0))
def test_dkd_decomposes_kd(student: Tensor, teacher: Tensor, temperature: float) -> None:
    target = torch.tensor([0, 3, 6])
    rest = 1 - (teacher / temperature).softmax(1)[torch.arange(3), target]
    tckd = dkd(student, teacher, target, temperature, 1.0, 0.0)
    nckd = dkd(student, teacher, target, temperature, 0.0, 1.0)
    expected = kd(student, teacher, temperature)
    torch.testing.assert_close(tckd + rest * nckd, expected, atol=1e-6, rtol=1e-6)
    assert (tckd >= -1e-9).all()
    assert (nckd >= -1e-9).all()


def test_dkd_of_a_tied_utterance_is_kd() -> None:
    student, teacher, *_ = batch(2)
    labels = torch.tensor([-1, 4])
    value = teacher_loss(student, teacher, labels, loss="dkd", temperature=2.0)
    plain = kd(student, teacher, 2.0)
    torch.testing.assert_close(value[0], plain[0])
    assert abs((value[1] - plain[1]).item()) > 1e-3


def test_dist_has_the_value_computed_by_hand() -> None:
    # Two utterances, softmax by hand: teacher [[.5,.25,.25],[.25,.5,.25]], student swapped rows.
    teacher = torch.tensor([[LN2, 0.0, 0.0], [0.0, LN2, 0.0]])
    student = teacher.flip(0)
    # Rows: deviations (1/6, -1/12, -1/12) and (-1/12, 1/6, -1/12): correlation -1/2.
    # Columns: -1, -1, and the constant third column counts as 0.
    expected = (1 + 0.5) + (1 + 2 / 3)
    value = dist(student, teacher, 1.0)
    torch.testing.assert_close(value, torch.tensor([expected, expected]))
    # At T = 2 the probabilities change, but not the symmetries and hence not the correlations.
    torch.testing.assert_close(dist(student, teacher, 2.0), torch.tensor([4 * expected] * 2))


@settings(deadline=None, max_examples=50)
@given(random_logits(), st.floats(-5, 5), st.floats(0.1, 10))
def test_standardized_logits_are_invariant_to_shift_and_scale(
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


def test_standardization_applies_to_every_loss() -> None:
    student, teacher, _, labels = batch()
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "temperature": 2.0}
        plain = teacher_loss(student, teacher, labels, **options)
        scaled = teacher_loss(student, teacher, labels, standardize=True, **options)
        by_hand = teacher_loss(standardized(student), standardized(teacher), labels, **options)
        torch.testing.assert_close(scaled, by_hand)
        assert (plain - scaled).abs().max() > 1e-3


def test_the_published_two_mse_is_one_mse_to_the_mean_of_label_and_teacher() -> None:
    student, teacher, shares, labels = batch()
    losses = distillation_loss(student, teacher, shares, labels, loss="two-mse", weight=0.5)
    published = ((student - shares) ** 2).mean() + ((student - teacher) ** 2).mean()
    torch.testing.assert_close(2 * losses.mean(), published)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    middle = ((student - (shares + teacher) / 2) ** 2).mean(dim=1).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(middle, student)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_the_label_loss_and_weight_one_the_teachers_loss(loss: str) -> None:
    student, teacher, shares, labels = batch()
    options: dict[str, Any] = {"loss": loss, "temperature": 3.0, "label_kind": "focal"}

    def total(weight: float) -> Tensor:
        return distillation_loss(student, teacher, shares, labels, weight=weight, **options)

    hard = label_loss(student, shares, labels, "mse" if loss == "two-mse" else "focal")
    soft = teacher_loss(student, teacher, labels, loss=loss, temperature=3.0)  # type: ignore[arg-type]
    assert torch.equal(total(0.0), hard)
    assert torch.equal(total(1.0), soft)
    for end, inside in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        torch.testing.assert_close(total(end), total(inside), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total(0.25), 0.25 * soft + 0.75 * hard)


@pytest.mark.parametrize("loss", LOSSES)
def test_label_smoothing_changes_the_label_loss_and_not_the_teachers(loss: str) -> None:
    student, teacher, shares, labels = batch()

    def total(weight: float, smoothing: float) -> Tensor:
        return distillation_loss(
            student, teacher, shares, labels, loss=loss, weight=weight, label_smoothing=smoothing
        )

    kind: Any = "mse" if loss == "two-mse" else "soft-cross-entropy"
    assert torch.equal(total(1.0, 0.2), total(1.0, 0.0))
    assert torch.equal(total(0.0, 0.2), label_loss(student, shares, labels, kind, smoothing=0.2))
    assert not torch.equal(total(0.0, 0.2), total(0.0, 0.0))


@pytest.mark.parametrize(("loss", "standardize"), [*product(LOSSES, (False, True))])
def test_loss_and_gradient_are_zero_if_the_student_equals_the_teacher(
    loss: str, standardize: bool
) -> None:
    _, teacher, _, labels = batch()
    student = teacher.clone().requires_grad_()
    value = teacher_loss(
        student, teacher, labels, loss=loss, temperature=2.0, standardize=standardize
    )  # type: ignore[arg-type]
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.abs().max() < 1e-7


def test_the_scale_of_the_gradient_does_not_depend_on_the_temperature() -> None:
    student, teacher, *_ = batch(64)
    norms = []
    for temperature in (4.0, 8.0, 16.0, 64.0):
        (gradient,) = torch.autograd.grad(kd(student, teacher, temperature).sum(), student)
        norms.append(gradient.norm().item())
    assert max(norms) / min(norms) < 1.25
    # The limit for high temperatures: the centred difference divided by the number of classes.
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
    labels = torch.tensor([-1, 0, 3, 6, 2])[:rows]
    for student_scale, teacher_scale in product((0.0, 1.0, 300.0), repeat=2):
        student = (student_scale * torch.eye(7)[:rows]).requires_grad_()
        teacher = (teacher_scale * torch.eye(7).flip(0)[:rows]).requires_grad_()
        losses = distillation_loss(
            student, teacher, shares, labels, loss=loss, standardize=standardize
        )  # type: ignore[arg-type]
        assert losses.shape == (rows,)
        assert losses.isfinite().all()
        losses.sum().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert teacher.grad is None


def test_only_dist_depends_on_the_other_utterances_of_the_batch() -> None:
    student, teacher, _, labels = batch()
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "temperature": 2.0}
        whole = teacher_loss(student, teacher, labels, **options)
        part = teacher_loss(student[:2], teacher[:2], labels[:2], **options)
        assert torch.allclose(whole[:2], part) == (loss != "dist")


def test_defaults_are_those_of_the_job_file() -> None:
    student, teacher, shares, labels = batch()
    config = DistillationConfig()
    for loss in ("kd", "dkd"):
        explicit = distillation_loss(
            student,
            teacher,
            shares,
            labels,
            loss=loss,  # type: ignore[arg-type]
            temperature=config.temperature,
            weight=config.weight,
            standardize=config.standardize,
            dkd_alpha=config.dkd_alpha,
            dkd_beta=config.dkd_beta,
        )
        default = distillation_loss(student, teacher, shares, labels, loss=loss)  # type: ignore[arg-type]
        assert torch.equal(explicit, default)
