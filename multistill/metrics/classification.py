"""Classification metrics computed from sums over rows, so a bootstrap resample is a matmul.

Every metric of the report depends only on sums over utterances: counts of (truth, prediction)
pairs, summed losses, and counts per confidence bin. `SufficientStatistics.rows` computes these
per utterance; `SufficientStatistics.measure` turns sums of rows (over the whole set, a slice, or
a thousand resamples in one call) into metrics.

Rows without a label (the votes tie, `truth` is -1) count towards the metrics that compare with
the vote shares (`kl`, `js`, `tv`), towards `accuracy_with_ties`, and towards no other metric.

Definitions
    accuracy     share of correct predictions (WA in speech emotion; equals weighted recall)
    uar          mean recall over the classes that occur in the truth (UA, balanced accuracy)
    macro_f1     mean F1 over the same classes
    weighted_f1  F1 weighted by how often a class occurs in the truth
    ece          expected calibration error of the top label, equal-width bins (Guo 2017)
    brier        sum over classes of the squared error to the one-hot label, 0 to 2
    nll          negative log likelihood of the label, nats
    top2         share of labels that are the prediction or the most probable other class
    accuracy_with_ties
                 share of all rows, those without a label too, whose prediction is the label or one
                 of the classes whose votes tie
    kl, js, tv   Kullback-Leibler (shares || prediction) and Jensen-Shannon divergence in
                 nats, total variation, each to the vote shares, averaged over rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multistill.typing import DoubleArray, IntArray

MEANS_OVER_CLASSES = ("uar", "macro_f1")
MIN_GROUPS = 2
MIN_CLIPS = 3
"""A class with fewer groups or clips is too rare for an interval of a mean over classes. With
these bounds `benchmarks/intervals.py` measures coverage at the nominal level."""
HARD = ("accuracy", "uar", "macro_f1", "weighted_f1")
CALIBRATION = ("ece", "brier", "nll")
SOFT = ("kl", "js", "tv")
LENIENT = ("top2", "accuracy_with_ties")
"""Shares of predictions for which more than one class is right."""
TIED = 1e-6
"""Vote shares that differ by less are equal: they are stored as 32-bit numbers."""
EPS = 1e-7
"""Lower bound of probabilities inside logarithms: one confident error keeps the NLL finite."""


def softmax(logits: npt.NDArray[np.floating]) -> DoubleArray:
    """Probabilities [..., C] of logits [..., C]."""
    values = logits.astype(np.float64)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: npt.NDArray[np.floating]) -> DoubleArray:
    """Probabilities [..., C] of each class against the rest, of logits [..., C]."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -500.0, 500.0))))


def shares_from_outputs(outputs: npt.NDArray[np.floating]) -> DoubleArray:
    """Shares [..., C] from the outputs [..., C] of a head trained by squared error on shares.

    Such outputs estimate the shares themselves: softmax would make them nearly uniform.
    """
    values = np.maximum(outputs.astype(np.float64), EPS)
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def distributions(outputs: npt.NDArray[np.floating], kind: str) -> DoubleArray:
    """Distributions [..., C] from a head's outputs [..., C].

    Args:
        kind: as a model's config.json says: `logits`; `shares` (of `shares_from_outputs`);
            `one-vs-rest`, whose sigmoids are divided by their sum.
    """
    if kind == "one-vs-rest":
        return shares_from_outputs(sigmoid(outputs))
    return shares_from_outputs(outputs) if kind == "shares" else softmax(outputs)


def log_probabilities(distribution: npt.NDArray[np.floating]) -> DoubleArray:
    """Logits up to a constant, to which softmax is invariant; defined for an ensemble too."""
    return np.asarray(np.log(np.maximum(distribution, EPS)))


def entropy(shares: DoubleArray) -> DoubleArray:
    """Entropy in nats of distributions [..., C]."""
    return np.asarray(-np.sum(shares * np.log(np.maximum(shares, EPS)), axis=-1))


def _kl(p: DoubleArray, q: DoubleArray) -> DoubleArray:
    log_ratio = np.log(np.maximum(p, EPS)) - np.log(np.maximum(q, EPS))
    return np.asarray(np.sum(p * log_ratio, axis=-1))


def divergences(probabilities: DoubleArray, shares: DoubleArray) -> DoubleArray:
    """KL, JS and total variation of each row: [N, 3]."""
    mixture = (probabilities + shares) / 2
    js = (_kl(shares, mixture) + _kl(probabilities, mixture)) / 2
    tv = np.abs(probabilities - shares).sum(axis=-1) / 2
    return np.stack([_kl(shares, probabilities), js, tv], axis=-1)


def is_right(truth: IntArray, predicted: IntArray, shares: DoubleArray) -> npt.NDArray[np.bool_]:
    """Whether each prediction [N] is the label or, without one, one of the tied classes.

    Args:
        truth, predicted: class indices [N]; -1 of `truth` is a tie.
        shares: vote shares [N, C].
    """
    most = shares.max(axis=1)
    tied = (most > TIED) & (shares[np.arange(len(shares)), predicted] >= most - TIED)
    return np.where(truth >= 0, predicted == truth, tied)


def _second(probabilities: DoubleArray, predicted: IntArray) -> IntArray:
    """The most probable class [N] besides the predicted one."""
    others = probabilities.copy()
    others[np.arange(len(others)), predicted] = -np.inf
    return np.asarray(others.argmax(axis=1))


@dataclass(frozen=True)
class SufficientStatistics:
    """The columns computed per utterance, and the metrics of their sums.

    Columns: C x C (truth, prediction) cells; Brier and NLL sums; row count and the three
    divergences; the two `LENIENT` counts and the rows that have a label or votes; per confidence
    bin the count, the summed confidence and the correct predictions.

    Attributes:
        classes: their number C.
        bins: of confidence.
    """

    classes: int
    bins: int = 15

    @property
    def cells(self) -> int:
        """Cells of the confusion matrix, the first columns of a row."""
        return self.classes * self.classes

    @property
    def width(self) -> int:
        return self.cells + 9 + 3 * self.bins

    def rows(self, truth: IntArray, probabilities: DoubleArray, shares: DoubleArray) -> DoubleArray:
        """One row per utterance, [N, width].

        Args:
            truth: class index [N], -1 where the votes tie.
            probabilities: predicted distribution [N, C].
            shares: vote shares [N, C], zero for an utterance without any class.
        """
        predicted = probabilities.argmax(axis=1)
        return self.rows_of(truth, predicted, probabilities, shares)

    def rows_of(
        self, truth: IntArray, predicted: IntArray, probabilities: DoubleArray, shares: DoubleArray
    ) -> DoubleArray:
        """As `rows`, for a prediction that is not the distribution's mode (a baseline)."""
        rows, cells = np.zeros((len(truth), self.width)), self.cells
        labelled = np.flatnonzero(truth >= 0)
        index = np.arange(len(labelled))
        label, answer = truth[labelled], predicted[labelled]
        distribution = probabilities[labelled]
        rows[labelled, label * self.classes + answer] = 1.0
        onehot = np.eye(self.classes)[label]
        rows[labelled, cells] = ((distribution - onehot) ** 2).sum(axis=1)
        rows[labelled, cells + 1] = -np.log(np.maximum(distribution[index, label], EPS))
        voted = shares.any(axis=1)
        rows[voted, cells + 2] = 1.0
        rows[voted, cells + 3 : cells + 6] = divergences(probabilities[voted], shares[voted])
        rows[labelled, cells + 6] = (label == answer) | (label == _second(distribution, answer))
        rows[:, cells + 7] = is_right(truth, predicted, shares)
        rows[:, cells + 8] = (truth >= 0) | (shares.max(axis=1) > TIED)
        confidence = distribution[index, answer]
        column = cells + 9 + 3 * self._bin(confidence)
        rows[labelled, column] = 1.0
        rows[labelled, column + 1] = confidence
        rows[labelled, column + 2] = label == answer
        return rows

    def _bin(self, confidence: DoubleArray) -> IntArray:
        return np.minimum((confidence * self.bins).astype(np.int64), self.bins - 1)

    def measure(
        self, sums: DoubleArray, classes: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, DoubleArray]:
        """Metrics [...] of summed rows [..., width]; NaN where nothing was counted.

        Args:
            classes: as in `from_confusion`.
        """
        metrics = from_confusion(self.confusion(sums), classes)
        with np.errstate(invalid="ignore", divide="ignore"):
            cells = self.cells
            labelled = sums[..., :cells].sum(axis=-1)
            metrics["brier"] = sums[..., cells] / labelled
            metrics["nll"] = sums[..., cells + 1] / labelled
            for offset, name in enumerate(SOFT):
                metrics[name] = sums[..., cells + 3 + offset] / sums[..., cells + 2]
            metrics["top2"] = sums[..., cells + 6] / labelled
            metrics["accuracy_with_ties"] = sums[..., cells + 7] / sums[..., cells + 8]
            bins = self.reliability(sums)
            gaps = np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1)
            metrics["ece"] = gaps / labelled
        return metrics

    def confusion(self, sums: DoubleArray) -> DoubleArray:
        """Counts [..., truth, prediction]."""
        cells = sums[..., : self.cells]
        return cells.reshape(*sums.shape[:-1], self.classes, self.classes)

    def reliability(self, sums: DoubleArray) -> DoubleArray:
        """Per bin [..., bins, 3]: predictions, their summed confidence, correct predictions."""
        return sums[..., self.cells + 9 :].reshape(*sums.shape[:-1], self.bins, 3)


def from_confusion(
    confusion: DoubleArray, classes: npt.NDArray[np.bool_] | None = None
) -> dict[str, DoubleArray]:
    """The four hard metrics [...] of counts [..., truth, prediction].

    Args:
        classes: the classes [C] over which UAR and macro F1 average: those of the whole test set
            when a part or a resample of it is measured. Both are NaN where one of them does not
            occur, since a mean over fewer classes is another metric. By default the classes that
            occur.

    Examples:
        >>> metrics = from_confusion(np.array([[8, 0], [1, 1]]))
        >>> {name: round(float(value), 3) for name, value in metrics.items()}
        {'accuracy': 0.9, 'uar': 0.75, 'macro_f1': 0.804, 'weighted_f1': 0.886}
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        truth = confusion.sum(axis=-1)
        predicted = confusion.sum(axis=-2)
        correct = np.diagonal(confusion, axis1=-2, axis2=-1)
        total = truth.sum(axis=-1)
        present = truth > 0
        averaged = present if classes is None else np.broadcast_to(classes, truth.shape)
        count = averaged.sum(axis=-1)
        recall = np.where(averaged, correct / truth, 0.0)
        f1 = np.where(present, 2 * correct / (truth + predicted), 0.0)
        complete = np.where((averaged & ~present).any(axis=-1), np.nan, 1.0)
        return {
            "accuracy": correct.sum(axis=-1) / total,
            "uar": recall.sum(axis=-1) / count,
            "macro_f1": complete * np.where(averaged, f1, 0.0).sum(axis=-1) / count,
            "weighted_f1": (f1 * truth).sum(axis=-1) / total,
        }


@dataclass(frozen=True)
class ClassSupport:
    """How often each class occurs in a set of utterances.

    Attributes:
        clips: utterances of each class [C].
        groups: resampled groups in which each class occurs [C].
    """

    clips: IntArray
    groups: IntArray

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        return self.clips > 0

    @property
    def rare(self) -> npt.NDArray[np.bool_]:
        """Classes that occur too rarely for an interval of a mean over classes.

        Of a class that occurs in one group, resamples hold everything or nothing.
        """
        few = (self.groups < MIN_GROUPS) | (self.clips < MIN_CLIPS)
        return np.asarray(self.present & few)

    def without_rare(self, draws: dict[str, DoubleArray]) -> dict[str, DoubleArray]:
        """The resampled metrics; means over classes are NaN where a class is too rare."""
        if not self.rare.any():
            return draws
        undefined = {name: np.full_like(draws[name], np.nan) for name in MEANS_OVER_CLASSES}
        return draws | undefined


def class_support(truth: IntArray, groups: IntArray, classes: int) -> ClassSupport:
    """Count the classes of `truth` [N] (-1 is none of the `classes`) over the groups [N]."""
    labelled = truth >= 0
    pairs = np.unique(np.stack([truth[labelled], groups[labelled]]), axis=1)
    return ClassSupport(
        np.bincount(truth[labelled], minlength=classes),
        np.bincount(pairs[0], minlength=classes),
    )


def per_class(
    confusion: DoubleArray, classes: Sequence[str]
) -> list[dict[str, float | str | int | None]]:
    """Recall, precision, F1 and balanced accuracy of each class; None where not defined.

    Balanced accuracy is that of telling the class from the rest: the mean of its recall and of the
    share of other clips that are not taken for it.
    """

    def ratio(numerator: float, denominator: float) -> float | None:
        return float(numerator / denominator) if denominator > 0 else None

    rows: list[dict[str, float | str | int | None]] = []
    for index, name in enumerate(classes):
        correct = confusion[index, index]
        truth, predicted = confusion[index].sum(), confusion[:, index].sum()
        recall = ratio(correct, truth)
        others = confusion.sum() - truth
        specificity = ratio(others - (predicted - correct), others)
        rows.append(
            {
                "class": name,
                "count": round(float(truth)),
                "recall": recall,
                "precision": ratio(correct, predicted),
                "f1": ratio(2 * correct, truth + predicted) if truth else None,
                "balanced_accuracy": None
                if recall is None or specificity is None
                else (recall + specificity) / 2,
            }
        )
    return rows


def calibration_summary(
    truth: IntArray, probabilities: DoubleArray, shares: DoubleArray, bins: int
) -> dict[str, object]:
    """ECE, accuracy, NLL and reliability bins, without intervals (not a test result)."""
    statistics = SufficientStatistics(shares.shape[-1], bins)
    sums = statistics.rows(truth, probabilities, shares).sum(axis=0)
    metrics = statistics.measure(sums)
    return {
        "clips": int((truth >= 0).sum()),
        "ece": float(metrics["ece"]),
        "accuracy": float(metrics["accuracy"]),
        "nll": float(metrics["nll"]),
        "reliability": statistics.reliability(sums).tolist(),
    }
