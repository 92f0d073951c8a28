"""CCC, Pearson and RMSE from sums, and the torch losses of the same name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multistill.metrics.dimensions import dimension_metrics, dimension_rows, measure_dimension
from multistill.models.dimensions import DimensionScale, ccc, dimension_loss


def series(size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    truth = rng.uniform(1, 5, size)
    return truth, 0.6 * truth + 1.5 + rng.normal(0, 0.5, size)


def measured(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    found = measure_dimension(dimension_rows(truth, predicted).sum(axis=0))
    return {name: float(value) for name, value in found.items()}


def test_sums_give_the_textbook_values() -> None:
    truth, predicted = series()
    x, y = truth.mean(), predicted.mean()
    covariance = ((truth - x) * (predicted - y)).mean()
    expected = {
        "ccc": 2 * covariance / (truth.var() + predicted.var() + (x - y) ** 2),
        "pearson": np.corrcoef(truth, predicted)[0, 1],
        "rmse": np.sqrt(((truth - predicted) ** 2).mean()),
    }
    assert measured(truth, predicted) == pytest.approx(expected)
    assert float(ccc(torch.from_numpy(predicted), torch.from_numpy(truth))) == pytest.approx(
        expected["ccc"]
    )


def test_missing_values_count_for_nothing() -> None:
    truth, predicted = series()
    with_gaps = np.append(truth, [np.nan, np.nan])
    assert measured(with_gaps, np.append(predicted, [1.0, 5.0])) == pytest.approx(
        measured(truth, predicted)
    )


def test_a_constant_has_no_concordance_and_no_correlation() -> None:
    truth, _ = series()
    found = measured(truth, np.full_like(truth, truth.mean()))
    assert found["ccc"] == pytest.approx(0, abs=1e-9) and np.isnan(found["pearson"])
    assert all(np.isnan(measured(np.full(5, 2.0), truth[:5])[name]) for name in ("ccc", "pearson"))


def test_a_dimension_that_does_not_vary_is_left_out_of_the_mean() -> None:
    truth, predicted = series()
    both = np.stack([truth, np.full_like(truth, 3.0)], axis=1)
    found = dimension_metrics(("valence", "arousal"), np.stack([predicted] * 2, axis=1), both)
    assert found["ccc"] == found["ccc_valence"] and "ccc_arousal" not in found


@pytest.mark.parametrize("kind", ["ccc", "mse", "rmse"])
def test_losses_are_least_at_the_target_and_ignore_missing_ones(kind: str) -> None:
    truth, predicted = (torch.from_numpy(each).float()[:, None] for each in series())
    weights = torch.ones(1)
    exact = dimension_loss(truth, truth, kind, weights)  # type: ignore[arg-type]
    assert exact.max() < 1e-3 < dimension_loss(predicted, truth, kind, weights).mean()  # type: ignore[arg-type]
    gaps = truth.clone()
    gaps[10:] = torch.nan
    free = predicted.clone().requires_grad_()
    dimension_loss(free, gaps, kind, weights).sum().backward()  # type: ignore[arg-type]
    assert free.grad is not None and free.grad.isfinite().all()
    assert (free.grad[10:] == 0).all() and (free.grad[:10] != 0).all()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("kind", ["ccc", "mse", "rmse"])
def test_batches_with_hardly_a_target_have_finite_gradients(kind: str, rows: int) -> None:
    target = torch.full((4, 2), torch.nan)
    target[:rows] = 2.0
    free = torch.full((4, 2), 2.0, requires_grad=True)
    dimension_loss(free, target, kind, torch.ones(2)).sum().backward()  # type: ignore[arg-type]
    assert free.grad is not None and free.grad.isfinite().all()


def test_the_scale_is_that_of_the_training_values() -> None:
    scale = DimensionScale(2)
    scale.fit(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]], np.float32))
    assert scale.centre.tolist() == [2.0, 3.0] and scale.scale.tolist() == [1.0, 1.0]
    assert scale(torch.tensor([[1.0, -2.0]])).tolist() == [[3.0, 1.0]]
