"""Metrics of predicted dimensions from sums over rows, so a bootstrap resample is a matmul.

Definitions, over the rows that have a true value x and a prediction y, population moments
    ccc       2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)    (Lin 1989, eq. 2)
    pearson   cov(x, y) / sqrt(var(x) var(y)); not defined where either is constant
    rmse      sqrt(mean (x - y)^2), on the scale from 1 to 5
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multistill.typing import DoubleArray, FloatArray

DIMENSION_METRICS = ("ccc", "pearson", "rmse")
CENTRE = 3.0
"""Values are shifted by it before they are squared, which keeps the digits of the variances."""
_ROUNDING = 1e-10
"""Variances below it are of floating-point numbers."""


def dimension_rows(truth: DoubleArray, predicted: DoubleArray | FloatArray) -> DoubleArray:
    """Sufficient statistics [N, 6] of a row: 1, x, y, xx, yy, xy; zeros where the truth is NaN.

    Args:
        truth, predicted: one dimension, [N].
    """
    known = np.isfinite(truth)
    x = np.where(known, truth, CENTRE).astype(np.float64) - CENTRE
    y = predicted.astype(np.float64) - CENTRE
    rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return np.asarray(rows * known[:, None])


def measure_dimension(sums: DoubleArray) -> dict[str, DoubleArray]:
    """`DIMENSION_METRICS` [...] of summed rows [..., 6]; NaN where the truth does not vary.

    Examples:
        >>> truth = np.array([1.0, 2.0, 4.0])
        >>> sums = dimension_rows(truth, truth + 1).sum(axis=0)
        >>> {name: round(float(value), 4) for name, value in measure_dimension(sums).items()}
        {'ccc': 0.7568, 'pearson': 1.0, 'rmse': 1.0}
    """
    count = sums[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, xx, yy, xy = (sums[..., column] / count for column in range(1, 6))
        variance_x, variance_y = np.maximum(xx - x * x, 0), np.maximum(yy - y * y, 0)
        covariance = np.where(variance_y > _ROUNDING, xy - x * y, 0.0)  # exactly 0 of a constant
        varies = variance_x > _ROUNDING
        ccc = 2 * covariance / (variance_x + variance_y + (x - y) ** 2)
        pearson = covariance / np.sqrt(variance_x * variance_y)
        rmse = np.sqrt(np.maximum(xx - 2 * xy + yy, 0))
    return {
        "ccc": np.where(varies, ccc, np.nan),
        "pearson": np.where(varies & (variance_y > _ROUNDING), pearson, np.nan),
        "rmse": rmse,
    }


def dimension_metrics(
    names: Sequence[str], predicted: FloatArray | DoubleArray, truth: FloatArray | DoubleArray
) -> dict[str, float]:
    """`ccc`, the mean over dimensions, and `ccc_NAME` and `rmse_NAME` of each.

    A dimension without two different true values has no CCC, and is left out of the mean.

    Args:
        predicted, truth: [N, D]; NaN in `truth` where there is no value.
    """
    metrics: dict[str, float] = {}
    for column, name in enumerate(names):
        sums = dimension_rows(truth[:, column].astype(np.float64), predicted[:, column]).sum(axis=0)
        found = measure_dimension(sums)
        values = {f"{metric}_{name}": float(found[metric]) for metric in ("ccc", "rmse")}
        metrics |= {key: value for key, value in values.items() if np.isfinite(value)}
    defined = [value for key, value in metrics.items() if key.startswith("ccc_")]
    return {"ccc": float(np.mean(defined)), **metrics} if defined else metrics
