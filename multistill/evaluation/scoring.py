"""Score predictions: metrics with intervals, calibration, slices and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multistill.config import EvaluationConfig
from multistill.evaluation.comparisons import (
    Scores,
    compare,
    difference,
    judge_family,
)
from multistill.evaluation.fairness import score_fairness
from multistill.evaluation.figures import PRIMARY_METRIC
from multistill.evaluation.repetitions import PooledRows, first_of, pool_rows, spread
from multistill.evaluation.selective import describe_threshold, score_selective
from multistill.evaluation.slices import Slice, attributes, score_slices, slices_of
from multistill.evaluation.speakers import score_speakers
from multistill.evaluation.utterances import Majority, Utterances
from multistill.metrics.classification import (
    CALIBRATION,
    HARD,
    SufficientStatistics,
    class_support,
    from_confusion,
    per_class,
)
from multistill.metrics.intervals import Resampling, choose_clusters, intervals
from multistill.typing import DoubleArray, IntArray

BASELINE = "majority baseline"


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for the test clips.

    Attributes:
        probabilities: [N, C], or [R, N, C] of R repetitions of a cross-validation.
        calibrated: the same after temperature scaling, or None without a validation set to fit
            the temperature on.
        thresholds: confidence from which each clip's prediction is kept, [N] or [R, N], chosen on
            validation for the wanted coverage.
        risk_thresholds: the same for the wanted risk, if there is one.
        dimensions: predicted values [N, D] of every seed.
    """

    name: str
    probabilities: DoubleArray
    calibrated: DoubleArray | None = None
    temperature: float | None = None
    compare_to: str | None = None
    thresholds: DoubleArray | None = None
    risk_thresholds: DoubleArray | None = None
    dimensions: Sequence[DoubleArray] = ()

    @property
    def confidence(self) -> DoubleArray:
        """Of each prediction [N]: the highest share, after temperature scaling if there is one."""
        shares = self.probabilities if self.calibrated is None else self.calibrated
        return np.asarray(first_of(shares, 2).max(axis=1))


class Scorer:
    """Scores any number of models on the same clips and the same resamples of them.

    Args:
        majority: of the clips.
        folds: of a cross-validation, in which each clip was tested in every repetition [R, N];
            None for a holdout.
        slices: the cells of a cross-corpus matrix, where a clip is tested several times. What
            assumes independent clips is then absent.
    """

    def __init__(
        self,
        clips: Utterances,
        majority: Majority,
        config: EvaluationConfig,
        seed: int,
        split_by: str = "session",
        folds: IntArray | None = None,
        slices: Sequence[Slice] = (),
    ) -> None:
        self.clips = clips
        self.majority = majority
        self.folds = folds
        self.confidence = config.confidence
        self.coverage = config.coverage
        self.risk = config.risk
        self.statistics = SufficientStatistics(len(clips.classes), config.calibration_bins)
        self.clusters = choose_clusters(clips.groups, clips.sessions, clips.speakers, split_by)
        self.resampling = Resampling(self.clusters, config.resamples, seed)
        once = np.arange(len(clips))
        if slices:  # a clip is tested by the models of several corpora
            once = np.unique(clips.ids, return_index=True)[1]
        self.support = class_support(
            clips.truth[once], self.clusters.index[once], len(clips.classes)
        )
        self.slices = [*slices_of(clips, majority), *slices]
        self.cells = list(slices)
        self.scores: dict[str, Scores] = {}
        self.scores_over_seeds: dict[str, Scores] = {}

    def score_baseline(self) -> dict[str, Any]:
        """Always the most frequent class of training; its distribution is the mean vote share."""
        majority = self.majority
        pooled = self._pool(majority.prior, majority.label)
        rows = pooled.rows
        values, draws = self._measure(rows)
        first = first_of(majority.label, 1)
        self.scores[BASELINE] = Scores(values, draws, first)
        labels = [self.clips.classes[label] for label in np.unique(majority.label)]
        return {
            "kind": "majority",
            "name": BASELINE,
            "label": " or ".join(labels),  # folds may differ
            "train_share": majority.share,
            "metrics": self._intervals(values, draws),
            **self._over_folds(pooled),
            "selective": self._score_selective(first, first_of(majority.prior, 2)),
            **self._over_people(first),
            "slices": self._score_slices([rows], self.slices),
        }

    def score(self, prediction: Prediction) -> dict[str, Any]:
        """Metrics with intervals, confusion, calibration and slices of one model."""
        pooled = self._pool(prediction.probabilities)
        rows = pooled.rows
        values, draws = self._measure(rows)
        first = first_of(prediction.probabilities, 2)
        predicted = first.argmax(axis=1)
        self.scores[prediction.name] = Scores(values, draws, predicted)
        sums = rows.sum(axis=0)
        confusion = self.statistics.confusion(sums)
        return {
            "metrics": self._intervals(values, draws),
            **self._over_folds(pooled),
            "confusion": np.rint(confusion).astype(int).tolist(),
            "classes": per_class(confusion, self.clips.classes),
            "reliability": self.statistics.reliability(sums).tolist(),
            "calibration": self._score_calibrated(prediction),
            "selective": self._score_selective(
                predicted,
                first,
                prediction.confidence,
                prediction.thresholds,
                prediction.risk_thresholds,
            ),
            **self._over_people(predicted),
            "slices": self._score_slices([rows], self.slices),
        }

    def score_metrics(self, probabilities: DoubleArray) -> dict[str, dict[str, float | None]]:
        """The metrics of `score` with their intervals, and nothing else.

        Args:
            probabilities: as of `Prediction`.
        """
        return self._intervals(*self._measure(self._pool(probabilities).rows))

    def score_seeds(self, name: str, probabilities: Sequence[DoubleArray]) -> dict[str, Any]:
        """The hard metrics over trainings of one model from several seeds.

        Args:
            probabilities: of every seed, as of `Prediction`.

        Returns:
            `count`, and per metric `values`, `sd` and the mean over seeds with its interval
            over resampled clips; the same means of the slices that were passed to the scorer.
        """
        pooled = [self._pool(each).rows for each in probabilities]
        measured = [self._measure(each) for each in pooled]
        per_seed = {m: np.stack([values[m] for values, _ in measured]) for m in HARD}
        draws = {m: np.mean([draws[m] for _, draws in measured], axis=0) for m in HARD}
        means = {m: np.mean(per_seed[m], axis=0) for m in HARD}
        predicted = first_of(probabilities[0], 2).argmax(axis=1)
        self.scores_over_seeds[name] = Scores(means, draws, predicted, per_seed)
        scored = self._intervals(means, draws)
        metrics = {}
        for m in HARD:
            finite = [_finite(value) for value in per_seed[m]]
            sd = None if None in finite else float(np.std(per_seed[m], ddof=1))
            metrics[m] = {"values": finite, "sd": sd, **scored[m]}
        found = {"count": len(probabilities), "metrics": metrics}
        if self.cells:
            found["slices"] = self._score_slices(pooled, self.cells)
        return found

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
        found = compare(
            name,
            scores[name],
            against,
            scores[against],
            self.clips.truth,
            self.clusters.count,
            self.confidence,
            not_trained or {},
        )
        return found | {"mcnemar": None} if self.cells else found

    def compare_all(
        self, predictions: Sequence[Prediction], not_trained: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """A comparison for every prediction with `compare_to`, judged as one family."""
        comparisons = [
            self.compare(prediction.name, prediction.compare_to, not_trained)
            for prediction in predictions
            if prediction.compare_to is not None
        ]
        return judge_family(comparisons, self.confidence)

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
            "ties": int(((truth < 0) & self.clips.shares.any(axis=1)).sum()),
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
        metrics = self.score_metrics(prediction.calibrated)
        return {
            "temperature": prediction.temperature,
            **{name: metrics[name] for name in CALIBRATION},
        }

    def _score_slices(
        self, seeds: Sequence[DoubleArray], slices: Sequence[Slice]
    ) -> list[dict[str, Any]]:
        """Hard metrics per slice, means over the rows of every training of a model."""
        cells = [rows[:, : self.statistics.cells] for rows in seeds]
        return score_slices(
            cells, slices, self.clips.truth, self.resampling, self.statistics, self.confidence
        )

    def _over_people(self, predicted: IntArray) -> dict[str, Any]:
        """`speakers`, the spread over them, and `fairness`, the differences between groups."""
        if self.cells:
            return {"speakers": None, "fairness": None}
        clips = self.clips
        speakers, classes = clips.speakers, clips.classes
        return {
            "speakers": score_speakers(speakers, clips.truth, predicted, len(classes)),
            "fairness": score_fairness(
                attributes(clips),
                speakers,
                clips.truth,
                predicted,
                classes,
                self.resampling.resamples,
                self.resampling.seed,
                self.confidence,
            ),
        }

    def _score_selective(
        self,
        predicted: IntArray,
        probabilities: DoubleArray,
        confidence: DoubleArray | None = None,
        thresholds: DoubleArray | None = None,
        risk_thresholds: DoubleArray | None = None,
    ) -> dict[str, Any] | None:
        """Risk against coverage; with thresholds of validation, what they keep.

        Args:
            probabilities: [N, C].
            confidence: [N]; default: the highest probability.
        """
        clips, truth = self.clips, self.clips.truth
        if confidence is None:
            confidence = np.asarray(probabilities.max(axis=1))
        found = score_selective(truth, predicted, confidence, self.resampling, self.confidence)
        if found is None:
            return None
        rows = self.statistics.rows_of(truth, predicted, probabilities, clips.shares)
        chosen = {
            "threshold": (thresholds, self.coverage),
            "risk_threshold": (risk_thresholds, self.risk),
        }
        for name, (values, wanted) in chosen.items():
            if values is None or wanted is None:
                continue
            values = first_of(values, 1)
            kept = (truth >= 0) & (confidence >= values)
            [part] = self._score_slices([rows], [Slice("confidence", "kept", kept)])
            found[name] = {
                **describe_threshold(values, wanted, kept, truth, self.resampling, self.confidence),
                **{metric: part["metrics"][metric] for metric in ("accuracy", "uar")},
            }
        return found


def _finite(value: DoubleArray) -> float | None:
    return float(value) if np.isfinite(value) else None
