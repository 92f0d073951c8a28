"""Baselines on openSMILE functionals: a linear SVM and a logistic regression per set.

Values are standardised by the training clips of the fold, a clip without values has their mean, and
ties are left out of training. The penalty is chosen by macro F1 on validation, the stronger of
equals, as that of the linear probes. A linear SVM gives no probabilities: its distributions are
softmax of the decision values, so its calibration says nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multistill.evaluation.candidates import evenly_spaced
from multistill.evaluation.utterances import Utterances
from multistill.features.functionals import SETS, TITLES, Functionals
from multistill.metrics.classification import softmax
from multistill.typing import DoubleArray, FloatArray, IntArray

INVERSE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of scikit-learn's `C`, from the strongest L2 penalty to the weakest."""
DEFAULT_INVERSE_PENALTY = 1e-3
"""Without a validation set to choose on."""
MAX_ITERATIONS = 500
MAX_CLIPS = 5_000
"""Limit of training clips, and of validation clips."""
CLASSIFIERS = {"svm": "linear SVM", "logistic": "logistic regression"}


@dataclass(frozen=True)
class LinearModel:
    """A fitted classifier: decision values W (x - mean) / scale + bias.

    Attributes:
        mean, scale: [D]. weights: [K, D] and bias: [K] of the classes [K] that training has.
        validation: macro F1; None without labelled validation clips.
    """

    classes: IntArray
    mean: FloatArray
    scale: FloatArray
    weights: DoubleArray
    bias: DoubleArray
    inverse_penalty: float
    validation: float | None = None

    @property
    def params_trainable(self) -> int:
        return self.weights.size + self.bias.size

    def standardised(self, values: FloatArray) -> FloatArray:
        found: FloatArray = (values - self.mean) / self.scale
        return np.nan_to_num(found, nan=0.0)

    def predict(self, values: FloatArray, count: int) -> DoubleArray:
        """Distributions [N, count]; a class that training lacks gets 0."""
        decisions = self.standardised(values) @ self.weights.T + self.bias
        found = np.zeros((len(values), count))
        found[:, self.classes] = softmax(decisions)
        return found


def in_row_space(inputs: FloatArray) -> tuple[DoubleArray, DoubleArray]:
    """Coordinates [N, R] of rows [N, D] in an orthonormal basis [R, D] of the space they span.

    A linear model with an L2 penalty has its weights in that space, so it can be fitted there: of
    6,373 values and 250 clips, 250 numbers per clip are left. With N of at least D, nothing is
    gained and the basis is the identity.
    """
    rows, width = inputs.shape
    exact = inputs.astype(np.float64)
    if rows >= width:
        return exact, np.eye(width)
    values, vectors = np.linalg.eigh(exact @ exact.T)
    kept = values > 1e-10 * values.max(initial=0.0)
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, (vectors[:, kept] / lengths).T @ exact


def fit_linear(
    kind: str,
    values: FloatArray,
    truth: IntArray,
    valid_values: FloatArray,
    valid_truth: IntArray,
    count: int,
) -> LinearModel:
    """Fit a classifier of `CLASSIFIERS` and choose its penalty on validation.

    Args:
        values: [N, D], NaN for clips without. truth: class index [N], -1 for ties.
        count: number of classes.

    Raises:
        ValueError: no training clip has a label.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.svm import LinearSVC

    labelled = (truth >= 0) & np.isfinite(values).all(axis=1)
    values, truth = values[labelled], truth[labelled]
    if not len(truth):
        raise ValueError("no training clip has a label and functionals")
    mean, scale = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    classes = np.unique(truth)
    blank = LinearModel(
        classes,
        mean.astype(np.float32),
        scale.astype(np.float32),
        np.zeros((len(classes), values.shape[1])),
        np.zeros(len(classes)),
        DEFAULT_INVERSE_PENALTY,
    )
    if len(classes) == 1:
        return blank
    inputs, basis = in_row_space(blank.standardised(values))
    known = valid_truth >= 0

    def fitted(penalty: float) -> LinearModel:
        model = (
            LinearSVC(C=penalty, dual="auto", random_state=0, max_iter=10 * MAX_ITERATIONS)
            if kind == "svm"
            else LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS)
        )
        with warnings.catch_warnings():
            # One that has not converged is a candidate like the others: validation decides.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs, truth)
        weights, bias = model.coef_ @ basis, model.intercept_
        if len(classes) == 2:  # scikit-learn stores one row of coefficients for two classes
            weights, bias = np.stack([-weights[0], weights[0]]), np.stack([-bias[0], bias[0]])
            if kind != "svm":
                weights, bias = weights / 2, bias / 2
        found = LinearModel(classes, blank.mean, blank.scale, weights, bias, penalty)
        if not known.any():
            return found
        answers = found.predict(valid_values[known], count).argmax(axis=1)
        labels = np.unique(valid_truth[known])
        score = f1_score(valid_truth[known], answers, average="macro", labels=labels)
        return LinearModel(
            classes, blank.mean, blank.scale, weights, bias, penalty, validation=float(score)
        )

    if not known.any():
        return fitted(DEFAULT_INVERSE_PENALTY)
    models = [fitted(penalty) for penalty in INVERSE_PENALTIES]
    return max(models, key=lambda model: model.validation or 0.0)


def functionals_baselines(
    functionals: Functionals, train: Utterances, valid: Utterances, test: Utterances
) -> Iterator[tuple[dict[str, Any], DoubleArray]]:
    """Every set's classifiers in one fold: entries of metrics.json, and distributions on test."""
    rows = evenly_spaced(len(train), MAX_CLIPS)
    chosen = evenly_spaced(len(valid), MAX_CLIPS)
    count = len(test.classes)

    def of(clips: Utterances, rows: Sequence[int] | IntArray, name: str) -> FloatArray:
        return functionals.read(name, [clips.ids[row] for row in rows])[0]

    for name in functionals.sets:
        inputs, valid_inputs = of(train, rows, name), of(valid, chosen, name)
        tested, there = functionals.read(name, test.ids)
        for kind, title in CLASSIFIERS.items():
            fitted = fit_linear(
                kind, inputs, train.truth[rows], valid_inputs, valid.truth[chosen], count
            )
            entry = {
                "name": f"{TITLES[name]}, {title}",
                "role": "reference",
                "modality": "audio",
                "params_trainable": fitted.params_trainable,
                "params_end_to_end": fitted.params_trainable,
                "clips": len(rows),
                "inverse_penalty": fitted.inverse_penalty,
                "validation": fitted.validation,
                "functionals": SETS[name],
                "missing": int((~there).sum()),
            }
            yield entry, fitted.predict(tested, count)
