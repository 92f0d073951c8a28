"""Label losses: hand-computed values, ties and weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.models.losses import LabelLoss, class_weights, label_loss, label_target

LOGITS = torch.tensor([[math.log(2.0), 0.0, 0.0], [0.0, math.log(3.0), 0.0]])
# softmax: [1/2, 1/4, 1/4] and [1/5, 3/5, 1/5]
SHARES = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.8, 0.2]])
LABELS = torch.tensor([-1, 1])


def test_losses_have_the_values_computed_by_hand() -> None:
    soft = label_loss(LOGITS, SHARES, LABELS)
    by_hand = [
        0.5 * math.log(2) + 0.5 * math.log(4),
        0.8 * math.log(5 / 3) + 0.2 * math.log(5),
    ]
    torch.testing.assert_close(soft, torch.tensor(by_hand))
    hard = label_loss(LOGITS, SHARES, LABELS, "cross-entropy")
    torch.testing.assert_close(hard, torch.tensor([by_hand[0], math.log(5 / 3)]))
    focal = label_loss(LOGITS, SHARES, LABELS, "focal")
    by_hand = [
        0.5 * 0.25 * math.log(2) + 0.5 * 0.5625 * math.log(4),
        0.8 * 0.16 * math.log(5 / 3) + 0.2 * 0.64 * math.log(5),
    ]
    torch.testing.assert_close(focal, torch.tensor(by_hand))
    mse = label_loss(LOGITS, SHARES, LABELS, "mse")
    by_hand = [
        ((math.log(2) - 0.5) ** 2 + 0.25) / 3,
        ((math.log(3) - 0.8) ** 2 + 0.04) / 3,
    ]
    torch.testing.assert_close(mse, torch.tensor(by_hand))


def test_the_target_of_a_tie_is_uniform_over_the_tied_classes() -> None:
    shares = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    labels = torch.tensor([-1, 1, 2])
    target = label_target(shares, labels, "winner")
    expected = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(target, torch.tensor(expected))
    assert label_target(shares, labels, "shares") is shares
    # A label given by the corpus may differ from the shares: the label is used.
    assert label_target(shares, torch.tensor([2, 2, 2]), "winner")[:, 2].eq(1).all()


@pytest.mark.parametrize("kind", ["soft-cross-entropy", "cross-entropy", "focal", "mse"])
def test_class_weights_multiply_each_class(kind: LabelLoss) -> None:
    weights = torch.tensor([2.0, 2.0, 2.0])
    plain = label_loss(LOGITS, SHARES, LABELS, kind)
    torch.testing.assert_close(
        label_loss(LOGITS, SHARES, LABELS, kind, class_weights=weights), 2 * plain
    )
    single = torch.tensor([0.0, 1.0, 0.0])
    partial = label_loss(LOGITS, SHARES, LABELS, kind, class_weights=single)
    assert (partial < plain + 1e-7).all()
    assert (partial[0] < plain[0]).item()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.floats(0.0, 0.99), st.booleans(), st.integers(0, 10_000))
def test_smoothed_losses_are_those_of_torch_for_single_classes_and_for_shares(
    classes: int, smoothing: float, weighted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64)
    shares = torch.rand(5, classes, generator=generator, dtype=torch.float64).softmax(dim=1)
    labels = shares.argmax(dim=1)
    weights = torch.rand(classes, generator=generator, dtype=torch.float64) if weighted else None
    for kind, target in (("cross-entropy", labels), ("soft-cross-entropy", shares)):
        torch.testing.assert_close(
            label_loss(logits, shares, labels, kind, "shares", weights, smoothing),  # type: ignore[arg-type]
            F.cross_entropy(logits, target, weights, reduction="none", label_smoothing=smoothing),
        )


@pytest.mark.parametrize("kind", ["soft-cross-entropy", "cross-entropy", "focal", "mse"])
def test_smoothing_moves_every_target_towards_equal_shares(kind: LabelLoss) -> None:
    target = label_target(SHARES, LABELS, "shares", 0.3)
    torch.testing.assert_close(target, 0.7 * SHARES + 0.1)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(2))
    # A tie is uniform over its classes first, then smoothed.
    tie = label_target(SHARES, LABELS, "winner", 0.3)[0]
    torch.testing.assert_close(tie, torch.tensor([0.45, 0.45, 0.1]))
    none, smoothed = (label_loss(LOGITS, SHARES, LABELS, kind, smoothing=s) for s in (0.0, 0.3))
    assert torch.equal(none, label_loss(LOGITS, SHARES, LABELS, kind))
    assert not torch.equal(none, smoothed)


def test_one_vs_rest_is_a_binary_cross_entropy_per_class_with_weighted_positives() -> None:
    weights = torch.tensor([2.0, 1.0, 3.0])
    found = label_loss(LOGITS, SHARES, LABELS, "one-vs-rest", class_weights=weights)
    p = LOGITS.sigmoid()
    by_hand = -(weights * SHARES * p.log() + (1 - SHARES) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(found, by_hand)


def test_odds_make_a_class_weigh_as_much_as_the_rest() -> None:
    shares = torch.eye(4)[torch.tensor([0] * 90 + [1] * 9 + [2])]
    odds = class_weights(shares, "odds")
    assert odds is not None
    assert odds.tolist() == pytest.approx([10 / 90, 91 / 9, 99.0, 1.0])


def test_class_weights_favour_rare_classes_and_have_a_mean_of_one() -> None:
    shares = torch.eye(4)[torch.tensor([0] * 90 + [1] * 9 + [2])]
    assert class_weights(shares, "none") is None
    for kind in ("inverse", "effective"):
        weights = class_weights(shares, kind)  # type: ignore[arg-type]
        assert weights is not None
        assert weights[2] > weights[1] > weights[0]
        assert weights[3] == 1.0
        assert (shares @ weights).mean() == pytest.approx(1.0, abs=1e-6)
    inverse = class_weights(shares, "inverse")
    assert inverse is not None
    assert (inverse[1] / inverse[0]).item() == pytest.approx(10.0)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-30, 30), min_size=7, max_size=7),
    st.lists(st.integers(0, 10), min_size=7, max_size=7).filter(lambda v: sum(v) > 0),
)
def test_soft_cross_entropy_is_minimal_at_the_label_distribution(
    logits: list[float], votes: list[int]
) -> None:
    shares = torch.tensor([votes], dtype=torch.float64) / sum(votes)
    labels = torch.tensor([-1])
    predicted = torch.tensor([logits], dtype=torch.float64)
    minimum = label_loss(torch.log(shares + 1e-12), shares, labels)
    assert (label_loss(predicted, shares, labels) >= minimum - 1e-9).all()
    for kind in ("soft-cross-entropy", "cross-entropy", "focal", "mse"):
        loss = label_loss(predicted, shares, labels, kind)  # type: ignore[arg-type]
        assert loss.shape == (1,)
        assert loss.isfinite().all()
        assert (loss >= 0).all()
