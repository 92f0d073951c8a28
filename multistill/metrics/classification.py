"""Metrics as functions of sums over rows, so that a bootstrap resample is a matrix product.

Every metric of the report needs only sums over utterances: counts of (truth, prediction)
pairs, summed losses, and counts per confidence bin. `rows` lays these out, one line an
utterance; `measure` turns sums of such lines (of the whole set, of a slice or of a
thousand resamples at once) into metrics.

Rows without a winner (a tie of the votes, `truth` -1) count for the metrics against the
vote shares (`kl`, `js`, `tv`) and for none of the others.

Definitions
    accuracy     share of right answers (WA in speech emotion; equals weighted recall)
    uar          mean recall over the classes that occur in the truth (UA, balanced accuracy)
    macro_f1     mean F1 over the same classes
    weighted_f1  F1 weighted by how often a class occurs in the truth
    ece          expected calibration error of the top label, equal-width bins (Guo 2017)
    brier        sum over classes of the squared error to the winner's one-hot, 0 to 2
    nll          negative log likelihood of the winner, nats
    kl, js, tv   Kullback-Leibler (shares || prediction) and Jensen-Shannon divergence in
                 nats, total variation, each to the vote shares, averaged over rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multistill.config import CLASSES
from multistill.typing import DoubleArray, IntArray

NUM_CLASSES = len(CLASSES)
CELLS = NUM_CLASSES * NUM_CLASSES
HARD = ("accuracy", "uar", "macro_f1", "weighted_f1")
CALIBRATION = ("ece", "brier", "nll")
SOFT = ("kl", "js", "tv")
SMALLEST = 1e-7
"""Probabilities are kept above this in logarithms, so one sure error stays finite."""


def softmax(logits: npt.NDArray[np.floating]) -> DoubleArray:
    """Probabilities [..., C] of logits [..., C]."""
    values = logits.astype(np.float64)
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def regressed(outputs: npt.NDArray[np.floating]) -> DoubleArray:
    """Shares [..., C] of the outputs [..., C] of a head trained by squared error on shares.

    Such outputs estimate the shares themselves: softmax would make them nearly uniform.
    """
    values = np.maximum(outputs.astype(np.float64), SMALLEST)
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def entropy(shares: DoubleArray) -> DoubleArray:
    """Entropy in nats of distributions [..., C]."""
    return np.asarray(-np.sum(shares * np.log(np.maximum(shares, SMALLEST)), axis=-1))


def _kl(of: DoubleArray, to: DoubleArray) -> DoubleArray:
    ratio = np.log(np.maximum(of, SMALLEST)) - np.log(np.maximum(to, SMALLEST))
    return np.asarray(np.sum(of * ratio, axis=-1))


def divergences(probabilities: DoubleArray, shares: DoubleArray) -> DoubleArray:
    """KL, JS and total variation of each row: [N, 3]."""
    middle = (probabilities + shares) / 2
    js = (_kl(shares, middle) + _kl(probabilities, middle)) / 2
    tv = np.abs(probabilities - shares).sum(axis=-1) / 2
    return np.stack([_kl(shares, probabilities), js, tv], axis=-1)


@dataclass(frozen=True)
class SufficientStatistics:
    """The layout of one line per utterance, and the metrics of summed lines.

    Columns: 49 (truth, prediction) cells; Brier and NLL sums; row count and the three
    divergences; per confidence bin count, summed confidence and right answers.
    """

    bins: int = 15

    @property
    def width(self) -> int:
        return CELLS + 6 + 3 * self.bins

    def rows(self, truth: IntArray, probabilities: DoubleArray, shares: DoubleArray) -> DoubleArray:
        """One line per utterance, [N, width].

        Args:
            truth: winning class [N], -1 where the votes tie.
            probabilities: predicted distribution [N, 7].
            shares: vote shares [N, 7].
        """
        predicted = probabilities.argmax(axis=1)
        return self.rows_of(truth, predicted, probabilities, shares)

    def rows_of(
        self, truth: IntArray, predicted: IntArray, probabilities: DoubleArray, shares: DoubleArray
    ) -> DoubleArray:
        """As `rows`, for a prediction that is not the distribution's mode (a baseline)."""
        lines = np.zeros((len(truth), self.width))
        where = np.flatnonzero(truth >= 0)
        winner, answer = truth[where], predicted[where]
        lines[where, winner * NUM_CLASSES + answer] = 1.0
        known = probabilities[where]
        onehot = np.eye(NUM_CLASSES)[winner]
        lines[where, CELLS] = ((known - onehot) ** 2).sum(axis=1)
        lines[where, CELLS + 1] = -np.log(
            np.maximum(known[np.arange(len(where)), winner], SMALLEST)
        )
        lines[:, CELLS + 2] = 1.0
        lines[:, CELLS + 3 : CELLS + 6] = divergences(probabilities, shares)
        confidence = known[np.arange(len(where)), answer]
        column = CELLS + 6 + 3 * self._bin(confidence)
        lines[where, column] = 1.0
        lines[where, column + 1] = confidence
        lines[where, column + 2] = winner == answer
        return lines

    def _bin(self, confidence: DoubleArray) -> IntArray:
        return np.minimum((confidence * self.bins).astype(np.int64), self.bins - 1)

    def measure(self, sums: DoubleArray) -> dict[str, DoubleArray]:
        """Metrics [...] of summed lines [..., width]; NaN where nothing was counted."""
        found = from_confusion(self.confusion(sums))
        with np.errstate(invalid="ignore", divide="ignore"):
            decided = sums[..., :CELLS].sum(axis=-1)
            found["brier"] = sums[..., CELLS] / decided
            found["nll"] = sums[..., CELLS + 1] / decided
            for offset, name in enumerate(SOFT):
                found[name] = sums[..., CELLS + 3 + offset] / sums[..., CELLS + 2]
            bins = self.reliability(sums)
            gaps = np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1)
            found["ece"] = gaps / decided
        return found

    def confusion(self, sums: DoubleArray) -> DoubleArray:
        """Counts [..., truth, prediction]."""
        return sums[..., :CELLS].reshape(*sums.shape[:-1], NUM_CLASSES, NUM_CLASSES)

    def reliability(self, sums: DoubleArray) -> DoubleArray:
        """Per bin [..., bins, 3]: answers, their summed confidence, how many were right."""
        return sums[..., CELLS + 6 :].reshape(*sums.shape[:-1], self.bins, 3)


def from_confusion(confusion: DoubleArray) -> dict[str, DoubleArray]:
    """The four hard metrics [...] of counts [..., truth, prediction].

    Examples:
        >>> metrics = from_confusion(np.array([[8, 0], [1, 1]]))
        >>> {name: round(float(value), 3) for name, value in metrics.items()}
        {'accuracy': 0.9, 'uar': 0.75, 'macro_f1': 0.804, 'weighted_f1': 0.886}
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        truth = confusion.sum(axis=-1)
        predicted = confusion.sum(axis=-2)
        right = np.diagonal(confusion, axis1=-2, axis2=-1)
        total = truth.sum(axis=-1)
        present = truth > 0
        classes = present.sum(axis=-1)
        recall = np.where(present, right / truth, 0.0)
        f1 = np.where(present, 2 * right / (truth + predicted), 0.0)
        return {
            "accuracy": right.sum(axis=-1) / total,
            "uar": recall.sum(axis=-1) / classes,
            "macro_f1": f1.sum(axis=-1) / classes,
            "weighted_f1": (f1 * truth).sum(axis=-1) / total,
        }


def per_class(confusion: DoubleArray) -> list[dict[str, float | str | int | None]]:
    """Recall, precision and F1 of each class; None where it is not defined."""

    def ratio(over: float, under: float) -> float | None:
        return float(over / under) if under > 0 else None

    rows: list[dict[str, float | str | int | None]] = []
    for index, name in enumerate(CLASSES):
        right = confusion[index, index]
        truth, predicted = confusion[index].sum(), confusion[:, index].sum()
        rows.append(
            {
                "class": name,
                "count": int(truth),
                "recall": ratio(right, truth),
                "precision": ratio(right, predicted),
                "f1": ratio(2 * right, truth + predicted) if truth else None,
            }
        )
    return rows


def calibration_of(
    truth: IntArray, probabilities: DoubleArray, shares: DoubleArray, bins: int
) -> dict[str, object]:
    """ECE, accuracy and reliability bins, without intervals (not a test result)."""
    statistics = SufficientStatistics(bins)
    sums = statistics.rows(truth, probabilities, shares).sum(axis=0)
    found = statistics.measure(sums)
    return {
        "clips": int((truth >= 0).sum()),
        "ece": float(found["ece"]),
        "accuracy": float(found["accuracy"]),
        "nll": float(found["nll"]),
        "reliability": statistics.reliability(sums).tolist(),
    }
