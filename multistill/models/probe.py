"""Linear probe: a logistic regression on pooled states, the strongest baseline without a network.

It reads the mean and the deviation over time of every dimension, and the strength of its penalty is
chosen on validation: a head that does not beat it is worth less than a linear model that knows
nothing of the order of frames and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multistill.models.context import StateStore
from multistill.models.spec import Modality
from multistill.typing import FloatArray

INVERSE_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates of scikit-learn's `C`, from the strongest L2 penalty to the weakest."""
DEFAULT_INVERSE_PENALTY = 0.1
"""Without a validation set to choose on."""
MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """A fitted probe: softmax(W (x - mean) / scale + bias) over pooled states x.

    Attributes:
        mean, scale: [2 D], over the training rows. weights: [C, 2 D]. bias: [C].
        inverse_penalty: `C` of scikit-learn.
        validation: macro F1 on the validation utterances; None if none has a label.
    """

    modality: Modality
    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    bias: FloatArray
    inverse_penalty: float = DEFAULT_INVERSE_PENALTY
    validation: float | None = None

    @property
    def params_trainable(self) -> int:
        return self.weights.size + self.bias.size

    def predict(self, store: StateStore, ids: Sequence[str]) -> FloatArray:
        """Distributions float32 [N, C] in class order; a class absent from training gets 0."""
        return self._predict(pooled_states(store, ids, self.modality))

    def _predict(self, pooled: FloatArray) -> FloatArray:
        logits = (pooled - self.mean) / self.scale @ self.weights.T + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        distributions: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return distributions.astype(np.float32)


def fit_probe(
    store: StateStore,
    ids: Sequence[str],
    shares: npt.ArrayLike,
    *,
    modality: Modality = "multimodal",
    valid_ids: Sequence[str] = (),
    valid_shares: npt.ArrayLike = (),
) -> Probe:
    """Fit a probe on the training utterances; choose its penalty on the validation utterances.

    Soft labels: an utterance enters once for every class with a non-zero share, weighted by the
    share, so the loss is the cross-entropy with the vote distribution and ties need no special
    case. The penalty with the highest macro F1 on validation is chosen, the stronger of equals: by
    the metric that chooses the epoch of a head, since the lowest cross-entropy shrinks rare
    classes away.

    Args:
        ids: [N] training utterances. shares: [N, C] vote shares in class order.
        valid_ids, valid_shares: the same of validation.

    Raises:
        ValueError: no utterances, or the shares have another number of rows.
    """
    from sklearn.linear_model import LogisticRegression

    target = np.asarray(shares, dtype=np.float64)
    if len(ids) == 0 or target.shape[0] != len(ids):
        raise ValueError(f"{len(ids)} utterances and {target.shape[0]} rows of shares")
    states = pooled_states(store, ids, modality)
    mean = states.mean(axis=0)
    scale = states.std(axis=0)
    # A constant dimension carries no information; its standard deviation is rounding error.
    scale[scale < 1e-6] = 1.0
    rows, labels = np.nonzero(target > 0)
    classes, count = np.unique(labels), target.shape[1]
    weights = np.zeros((count, states.shape[1]), dtype=np.float32)
    bias = np.full(count, -np.inf, dtype=np.float32)
    probe = Probe(modality, mean, scale, weights, bias)
    valid_states = pooled_states(store, valid_ids, modality)
    valid_target = np.asarray(valid_shares, dtype=np.float64)

    def scored(probe: Probe) -> Probe:
        if not len(valid_ids):
            return probe
        found = _macro_f1(probe._predict(valid_states), valid_target)
        return replace(probe, validation=found)

    if len(classes) == 1:
        bias[classes] = 0.0
        return scored(probe)
    inputs, share = ((states - mean) / scale)[rows], target[rows, labels]
    # From the strongest penalty on, each fit starts at the one before.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)

    def fitted(inverse_penalty: float) -> Probe:
        model.set_params(C=inverse_penalty).fit(inputs, labels, sample_weight=share)
        w, b = weights.copy(), bias.copy()
        if len(classes) == 2:  # scikit-learn stores one row of coefficients for two classes
            w[classes[1]] = model.coef_[0]
            b[classes] = 0.0, model.intercept_[0]
        else:
            w[classes], b[classes] = model.coef_, model.intercept_
        return replace(probe, weights=w, bias=b, inverse_penalty=inverse_penalty)

    if not len(valid_ids):
        return fitted(DEFAULT_INVERSE_PENALTY)
    probes = [scored(fitted(inverse_penalty)) for inverse_penalty in INVERSE_PENALTIES]
    return max(probes, key=lambda p: -1.0 if p.validation is None else p.validation)


def _macro_f1(distributions: FloatArray, shares: npt.NDArray[np.float64]) -> float | None:
    """Of the utterances whose votes do not tie; None if all do."""
    from sklearn.metrics import f1_score

    best = shares.max(axis=1, keepdims=True)
    decided = (shares == best).sum(axis=1) == 1
    truth, predicted = shares[decided].argmax(axis=1), distributions[decided].argmax(axis=1)
    if not len(truth):
        return None
    return float(f1_score(truth, predicted, average="macro", labels=np.unique(truth)))


def pooled_states(store: StateStore, ids: Sequence[str], modality: Modality) -> FloatArray:
    """Mean and deviation over time of the text states, then of the audio states: [N, 2 D].

    Zeros for an empty transcript and for utterances that are not in the store.
    """
    parts = []
    if modality != "audio":
        parts.append(("text", store.text_dim))
    if modality != "text":
        parts.append(("audio", store.audio_dim))
    result = np.zeros((len(ids), 2 * sum(dim for _, dim in parts)), dtype=np.float32)
    stored = [(row, name) for row, name in enumerate(ids) if name in store]
    names = [name for _, name in stored]
    start = 0
    for part, dim in parts:
        for (row, _), read in zip(stored, store.each(part, names), strict=True):
            states = np.asarray(read, dtype=np.float32)
            if len(states):
                result[row, start : start + dim] = states.mean(axis=0)
                result[row, start + dim : start + 2 * dim] = states.std(axis=0)
        start += 2 * dim
    return result
