"""Score predictions: metrics with intervals, calibration, slices and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multistill.config import EvaluationConfig
from multistill.evaluation.comparisons import PRIMARY_METRIC, Scores, compare, difference
from multistill.evaluation.repetitions import PooledRows, pool_rows, spread
from multistill.evaluation.utterances import Majority, Utterances
from multistill.metrics.classification import (
    CALIBRATION,
    HARD,
    SufficientStatistics,
    class_support,
    entropy,
    from_confusion,
    per_class,
)
from multistill.metrics.intervals import Resampling, choose_clusters, intervals
from multistill.typing import DoubleArray, IntArray

BASELINE = "majority baseline"
MAX_SLICES = 60
"""A table with more sessions than this is too long to be read; its slices are skipped."""


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for the test clips.

    Attributes:
        probabilities: [N, C], or [R, N, C] of R repetitions of a cross-validation.
        calibrated: the same after temperature scaling, or None without a validation set to fit
            the temperature on.
    """

    name: str
    probabilities: DoubleArray
    calibrated: DoubleArray | None = None
    temperature: float | None = None
    compare_to: str | None = None


@dataclass(frozen=True)
class Slice:
    """A part of the test set: the kind of slice, its name, and a mask [N] of its clips."""

    by: str
    name: str
    mask: np.ndarray


class Scorer:
    """Scores any number of models on the same clips and the same resamples of them.

    Args:
        majority: of the clips.
        folds: of a cross-validation, in which each clip was tested in every repetition [R, N];
            None for a holdout.
    """

    def __init__(
        self,
        clips: Utterances,
        majority: Majority,
        config: EvaluationConfig,
        seed: int,
        split_by: str = "session",
        folds: IntArray | None = None,
    ) -> None:
        self.clips = clips
        self.majority = majority
        self.folds = folds
        self.confidence = config.confidence
        self.statistics = SufficientStatistics(len(clips.classes), config.calibration_bins)
        self.clusters = choose_clusters(clips.groups, clips.sessions, clips.speakers, split_by)
        self.resampling = Resampling(self.clusters, config.resamples, seed)
        self.support = class_support(clips.truth, self.clusters.index, len(clips.classes))
        self.slices = _slices(clips, majority)
        self.scores: dict[str, Scores] = {}
        self.scores_over_seeds: dict[str, Scores] = {}

    def score_baseline(self) -> dict[str, Any]:
        """Always the most frequent class of training; its distribution is the mean vote share."""
        majority = self.majority
        pooled = self._pool(majority.prior, majority.label)
        rows = pooled.rows
        values, draws = self._measure(rows)
        self.scores[BASELINE] = Scores(values, draws, np.atleast_2d(majority.label)[0])
        labels = [self.clips.classes[label] for label in np.unique(majority.label)]
        return {
            "kind": "majority",
            "name": BASELINE,
            "label": " or ".join(labels),  # folds may differ
            "train_share": majority.share,
            "metrics": self._intervals(values, draws),
            **self._over_folds(pooled),
            "slices": self._score_slices(rows),
        }

    def score(self, prediction: Prediction) -> dict[str, Any]:
        """Metrics with intervals, confusion, calibration and slices of one model."""
        pooled = self._pool(prediction.probabilities)
        rows = pooled.rows
        values, draws = self._measure(rows)
        self.scores[prediction.name] = Scores(values, draws, _predicted(prediction.probabilities))
        sums = rows.sum(axis=0)
        confusion = self.statistics.confusion(sums)
        return {
            "metrics": self._intervals(values, draws),
            **self._over_folds(pooled),
            "confusion": np.rint(confusion).astype(int).tolist(),
            "classes": per_class(confusion, self.clips.classes),
            "reliability": self.statistics.reliability(sums).tolist(),
            "calibration": self._score_calibrated(prediction),
            "slices": self._score_slices(rows),
        }

    def score_seeds(self, name: str, probabilities: Sequence[DoubleArray]) -> dict[str, Any]:
        """The hard metrics over trainings of one model from several seeds.

        Args:
            probabilities: of every seed, as of `Prediction`.

        Returns:
            `count`, and per metric `values`, `sd` and the mean over seeds with its interval
            over resampled clips.
        """
        measured = [self._measure(self._pool(each).rows) for each in probabilities]
        per_seed = {m: np.stack([values[m] for values, _ in measured]) for m in HARD}
        draws = {m: np.mean([draws[m] for _, draws in measured], axis=0) for m in HARD}
        means = {m: np.mean(per_seed[m], axis=0) for m in HARD}
        predicted = _predicted(probabilities[0])
        self.scores_over_seeds[name] = Scores(means, draws, predicted, per_seed)
        scored = self._intervals(means, draws)
        metrics = {}
        for m in HARD:
            finite = [_finite(value) for value in per_seed[m]]
            sd = None if None in finite else float(np.std(per_seed[m], ddof=1))
            metrics[m] = {"values": finite, "sd": sd, **scored[m]}
        return {"count": len(probabilities), "metrics": metrics}

    def compare(
        self, name: str, against: str, not_trained: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Paired difference of two models that were passed to `score` or to `score_seeds`.

        The means over seeds are compared if both models were trained from several.

        Args:
            not_trained: models that learnt nothing, and why; a comparison with one of them has
                the verdict `not trained`.
        """
        several = name in self.scores_over_seeds and against in self.scores_over_seeds
        scores = self.scores_over_seeds if several else self.scores
        return compare(
            name,
            scores[name],
            against,
            scores[against],
            self.clips.truth,
            self.clusters.count,
            self.confidence,
            not_trained or {},
        )

    def compare_all(
        self, predictions: Sequence[Prediction], not_trained: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """A comparison for every prediction with `compare_to`."""
        return [
            self.compare(prediction.name, prediction.compare_to, not_trained)
            for prediction in predictions
            if prediction.compare_to is not None
        ]

    def difference(self, name: str, against: str) -> dict[str, float | None]:
        """Paired difference of the main metric of two scored names, `BASELINE` included.

        Of each, the mean over its seeds counts, with their variance.
        """
        first, second = (
            self.scores_over_seeds.get(each, self.scores[each]) for each in (name, against)
        )
        return difference(PRIMARY_METRIC, first, second, self.clusters.count, self.confidence)

    def describe_test_set(self) -> dict[str, Any]:
        """Size of the test set and unit of resampling, as in metrics.json."""
        truth = self.clips.truth
        return {
            "clips": len(truth),
            "decided": int((truth >= 0).sum()),
            "ties": int((truth < 0).sum()),
            "without_features": self.clips.without_features,
            "sessions": len(set(self.clips.sessions)),
            "speakers": len(set(self.clips.speakers)),
            "resampled": self.clusters.describe() | {"without_a_class": self._without_a_class()},
            "rare_classes": [
                {
                    "class": self.clips.classes[index],
                    "clips": int(self.support.clips[index]),
                    "groups": int(self.support.groups[index]),
                }
                for index in np.flatnonzero(self.support.rare)
            ],
        }

    def _without_a_class(self) -> int:
        """Number of resamples that lack a class of the test set, and have no UAR or macro F1."""
        labels = (
            np.eye(len(self.clips.classes))[self.clips.truth] * (self.clips.truth >= 0)[:, None]
        )
        counted = self.resampling.sums(labels)[:, self.support.present]
        return int((counted == 0).any(axis=1).sum())

    def _measure(self, rows: DoubleArray) -> tuple[dict[str, DoubleArray], dict[str, DoubleArray]]:
        """Metrics of the test set and of every resample, over the test set's classes."""
        values = self.statistics.measure(rows.sum(axis=0))
        draws = self.statistics.measure(self.resampling.sums(rows), self.support.present)
        return values, self.support.without_rare(draws)

    def _pool(self, probabilities: DoubleArray, predicted: IntArray | None = None) -> PooledRows:
        """The rows of all repetitions; `predicted` defaults to the distributions' mode."""
        clips = self.clips
        of_all = probabilities.reshape(-1, *probabilities.shape[-2:])
        given = None if predicted is None else np.atleast_2d(predicted)

        def rows_of(repetition: int) -> DoubleArray:
            own = of_all[repetition]
            labels = own.argmax(axis=1) if given is None else given[repetition]
            return self.statistics.rows_of(clips.truth, labels, own, clips.shares)

        return pool_rows(rows_of, len(of_all), self.folds)

    def _over_folds(self, pooled: PooledRows) -> dict[str, Any]:
        """Hard metrics of every fold and every repetition with mean and deviation.

        Of each fold, over the classes that its clips have. `folds` is None for a holdout,
        `repetitions` without any.
        """

        def over(sums: DoubleArray | None) -> dict[str, Any] | None:
            if sums is None or len(sums) < 2:
                return None
            measured = [from_confusion(self.statistics.confusion(each)) for each in sums]
            return spread({m: np.array([each[m] for each in measured], float) for m in HARD})

        return {"folds": over(pooled.folds), "repetitions": over(pooled.repetitions)}

    def _intervals(
        self, values: Mapping[str, DoubleArray], draws: Mapping[str, DoubleArray]
    ) -> dict[str, dict[str, float | None]]:
        return intervals(values, draws, self.confidence, self.clusters.count)

    def _score_calibrated(self, prediction: Prediction) -> dict[str, Any] | None:
        if prediction.calibrated is None:
            return None
        values, draws = self._measure(self._pool(prediction.calibrated).rows)
        metrics = self._intervals(values, draws)
        return {
            "temperature": prediction.temperature,
            **{name: metrics[name] for name in CALIBRATION},
        }

    def _score_slices(self, rows: DoubleArray) -> list[dict[str, Any]]:
        """Hard metrics per slice; a slice of one resampled group has no interval."""
        cells = rows[:, : self.statistics.cells]
        truth, index = self.clips.truth, self.clusters.index
        sums = self.resampling.group_sums(cells, [part.mask for part in self.slices])
        scored = []
        for part, resampled in zip(self.slices, sums, strict=True):
            support = class_support(truth[part.mask], index[part.mask], self.statistics.classes)
            values = from_confusion(self.statistics.confusion(cells[part.mask].sum(axis=0)))
            draws = from_confusion(self.statistics.confusion(resampled), support.present)
            groups = len(np.unique(index[part.mask]))
            metrics = intervals(values, support.without_rare(draws), self.confidence, groups)
            labelled = int((truth[part.mask] >= 0).sum())
            scored.append({"by": part.by, "name": part.name, "clips": labelled, "metrics": metrics})
        return scored


def _predicted(probabilities: DoubleArray) -> IntArray:
    """Class of each clip [N]; of several repetitions, in the first."""
    first = probabilities[0] if probabilities.ndim > 2 else probabilities
    return np.asarray(first.argmax(axis=1))


def _finite(value: DoubleArray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _slices(clips: Utterances, majority: Majority) -> list[Slice]:
    """Slices by session, gender, rater agreement and known transcripts, if they vary."""
    slices: list[Slice] = []
    for by, names in (("session", clips.sessions), ("gender", clips.genders)):
        distinct = sorted({name for name in names if name})
        if 1 < len(distinct) <= MAX_SLICES:
            slices += [Slice(by, name, np.array([n == name for n in names])) for name in distinct]
    slices += _agreement_slices(clips)
    known = majority.seen
    if known.any() and not known.all():
        slices.append(Slice("transcript", "also in training", known))
        slices.append(Slice("transcript", "not in training", ~known))
    return slices


def _agreement_slices(clips: Utterances) -> list[Slice]:
    """Bands of vote entropy; none if the raters never disagree."""
    spread = entropy(clips.shares)
    labelled = clips.truth >= 0
    divided = (spread > 1e-6) & labelled
    if divided.sum() < 2:
        return []
    median = float(np.median(spread[divided]))
    bands: list[tuple[str, np.ndarray]] = [
        ("all raters agree", spread <= 1e-6),
        (f"entropy up to {median:.2f} nats", (spread > 1e-6) & (spread <= median)),
        (f"entropy above {median:.2f} nats", spread > median),
    ]
    return [Slice("votes", name, mask) for name, mask in bands if (mask & labelled).any()]
