"""Linear probe: a logistic regression on mean-pooled states, the baseline without a network.

What a trained head gains over the probe, it gained from the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multistill.models.context import StateStore, mean_states
from multistill.models.spec import Modality
from multistill.typing import FloatArray

INVERSE_PENALTY = 1.0
"""`C` of scikit-learn: the inverse of the L2 penalty."""

MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """A fitted probe: softmax(W (x - mean) / scale + bias) over mean-pooled states x.

    Attributes:
        mean, scale: [D], over the training rows. weights: [C, D]. bias: [C].
    """

    modality: Modality
    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    bias: FloatArray

    @property
    def params_trainable(self) -> int:
        return self.weights.size + self.bias.size

    def predict(self, store: StateStore, ids: Sequence[str]) -> FloatArray:
        """Distributions float32 [N, C] in class order; a class absent from training gets 0."""
        states = (_pooled(store, ids, self.modality) - self.mean) / self.scale
        logits = states @ self.weights.T + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        distributions: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return distributions.astype(np.float32)


def fit_probe(
    store: StateStore,
    ids: Sequence[str],
    shares: npt.ArrayLike,
    *,
    modality: Modality = "multimodal",
) -> Probe:
    """Fit a probe on the training utterances.

    Soft labels: an utterance enters once for every class with a non-zero share, weighted by the
    share, so the loss is the cross-entropy with the vote distribution and ties need no special
    case.

    Args:
        ids: [N] training utterances. shares: [N, C] vote shares in class order.

    Raises:
        ValueError: no utterances, or the shares have another number of rows.
    """
    from sklearn.linear_model import LogisticRegression

    target = np.asarray(shares, dtype=np.float64)
    if len(ids) == 0 or target.shape[0] != len(ids):
        raise ValueError(f"{len(ids)} utterances and {target.shape[0]} rows of shares")
    states = _pooled(store, ids, modality)
    mean = states.mean(axis=0)
    scale = states.std(axis=0)
    # A constant dimension carries no information; its standard deviation is rounding error.
    scale[scale < 1e-6] = 1.0
    rows, labels = np.nonzero(target > 0)
    classes, count = np.unique(labels), target.shape[1]
    weights = np.zeros((count, states.shape[1]), dtype=np.float32)
    bias = np.full(count, -np.inf, dtype=np.float32)
    if len(classes) == 1:
        bias[classes] = 0.0
        return Probe(modality, mean, scale, weights, bias)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITERATIONS)
    model.fit(((states - mean) / scale)[rows], labels, sample_weight=target[rows, labels])
    if len(classes) == 2:  # scikit-learn stores one row of coefficients for two classes
        weights[classes[1]] = model.coef_[0]
        bias[classes] = 0.0, model.intercept_[0]
    else:
        weights[classes] = model.coef_
        bias[classes] = model.intercept_
    return Probe(modality, mean, scale, weights, bias)


def _pooled(store: StateStore, ids: Sequence[str], modality: Modality) -> FloatArray:
    states: FloatArray = mean_states(store, ids)
    if modality == "text":
        return states[:, : store.text_dim]
    return states if modality == "multimodal" else states[:, store.text_dim :]
