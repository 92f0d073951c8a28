"""Linear probe of dimensions: ridge regression on pooled states, as `multistill.models.probe`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multistill.metrics.dimensions import dimension_rows, measure_dimension
from multistill.models.context import StateStore
from multistill.models.probe import pooled_states
from multistill.models.spec import Modality
from multistill.typing import DoubleArray

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Candidates of scikit-learn's `alpha`, from the weakest L2 penalty to the strongest."""
DEFAULT_PENALTY = 300.0
"""Without validation values to choose on."""


def ridge_predictions(
    store: StateStore,
    train: tuple[Sequence[str], DoubleArray],
    valid: tuple[Sequence[str], DoubleArray],
    test: Sequence[str],
    modality: Modality,
) -> DoubleArray:
    """Predictions [N, D] for the `test` utterances of one regression per dimension.

    The penalty with the highest concordance correlation on validation is chosen, per dimension.
    Predictions are cut to the range of the training values. A dimension without a training value
    is NaN.

    Args:
        train, valid: ids and values [N, D], NaN where there is none.
    """
    from sklearn.linear_model import Ridge

    states = pooled_states(store, train[0], modality)
    mean, scale = states.mean(axis=0), states.std(axis=0)
    scale[scale < 1e-6] = 1.0
    inputs, valid_inputs, test_inputs = (
        (each - mean) / scale
        for each in (
            states,
            pooled_states(store, valid[0], modality),
            pooled_states(store, test, modality),
        )
    )
    predicted = np.full((len(test), train[1].shape[1]), np.nan)
    for column in range(train[1].shape[1]):
        target, chosen_on = train[1][:, column], valid[1][:, column]
        rows = np.isfinite(target)
        if not rows.any():
            continue
        bounds = target[rows].min(), target[rows].max()

        def fitted(penalty: float, rows: np.ndarray = rows, target: DoubleArray = target) -> Ridge:
            return Ridge(alpha=penalty).fit(inputs[rows], target[rows])

        def score(model: Ridge, truth: DoubleArray = chosen_on) -> float:
            sums = dimension_rows(truth, model.predict(valid_inputs)).sum(axis=0)
            return float(np.nan_to_num(measure_dimension(sums)["ccc"], nan=-2.0))

        if np.isfinite(chosen_on).sum() > 1:
            model = max(map(fitted, PENALTIES), key=score)
        else:
            model = fitted(DEFAULT_PENALTY)
        predicted[:, column] = np.clip(model.predict(test_inputs), *bounds)
    return predicted
