"""Scores of predicted dimensions: CCC, Pearson and RMSE with intervals, and paired differences.

Every dimension is scored on the test clips that have a value of it, on resamples of whole groups of
these clips (`multistill.metrics.intervals`), which are the same for all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.evaluation.comparisons import Scores, describe_difference, difference, verdict
from multistill.evaluation.folds import FoldData
from multistill.evaluation.utterances import Utterances
from multistill.features.store import FeatureStore
from multistill.metrics.dimensions import DIMENSION_METRICS, dimension_rows, measure_dimension
from multistill.metrics.intervals import Clusters, Resampling, intervals
from multistill.models.ridge import ridge_predictions
from multistill.models.spec import Modality
from multistill.typing import DoubleArray, IntArray

BASELINE = "training mean"
PRIMARY = "ccc"
"""The metric whose interval decides the verdict."""
TITLES = {"ccc": "CCC", "pearson": "Pearson", "rmse": "RMSE"}


class DimensionScorer:
    """Scores any number of models on one dimension of the same clips.

    Args:
        truth: [N], NaN where there is no value.
        mean: of the training part, for each test clip [N].
        clusters: of all test clips.
        folds: of a cross-validation, in which each clip [N] was tested; None for a holdout.
    """

    def __init__(
        self,
        name: str,
        truth: DoubleArray,
        mean: DoubleArray,
        clusters: Clusters,
        resampling: Resampling,
        confidence: float,
        folds: IntArray | None,
    ) -> None:
        self.name = name
        self.known = np.isfinite(truth)
        self.truth = truth[self.known]
        groups, index = np.unique(clusters.index[self.known], return_inverse=True)
        self.clusters = Clusters(clusters.unit, index, len(groups), clusters.only)
        self.resampling = Resampling(self.clusters, resampling.resamples, resampling.seed)
        self.confidence = confidence
        self.folds = None if folds is None else folds[self.known]
        self.scores: dict[str, Scores] = {}
        self.models: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] = []
        self.comparisons: list[dict[str, Any]] = []
        self.baseline = self._score(BASELINE, [mean])

    def score_model(self, description: Mapping[str, Any], predicted: Sequence[DoubleArray]) -> None:
        """Score a model.

        Args:
            description: `name`, `role` and `modality`.
            predicted: [N] of every seed.
        """
        entry = {**description, **self._score(str(description["name"]), predicted)}
        (self.references if description["role"] == "probe" else self.models).append(entry)

    def compare(self, name: str, against: str) -> None:
        """Paired differences of two scored models; with one seed of either, no verdict."""
        first, second = self.scores[name], self.scores[against]
        differences = {
            metric: difference(metric, first, second, self.clusters.count, self.confidence)
            for metric in DIMENSION_METRICS
        }
        primary, seeds = differences[PRIMARY], min(first.seeds, second.seeds)
        decision = verdict(primary["low"], primary["high"]) if seeds > 1 else "cannot tell"
        title = f"{self.name} {TITLES[PRIMARY]}"
        self.comparisons.append(
            {
                "model": name,
                "against": against,
                "metric": PRIMARY,
                "verdict": decision,
                "seeds": seeds,
                "differences": differences,
                "sentence": describe_difference(
                    name, against, decision, primary, self.confidence, seeds, title
                ),
            }
        )

    def describe(self) -> dict[str, Any]:
        """The dimension's entry of metrics.json."""
        return {
            "dimension": self.name,
            "clips": len(self.truth),
            "resampled": self.clusters.describe(),
            "baseline": self.baseline,
            "references": self.references,
            "models": self.models,
            "distillation": self.comparisons,
        }

    def _score(self, name: str, predicted: Sequence[DoubleArray]) -> dict[str, Any]:
        """Metrics of the first seed; over several, means with their deviation in `seeds`."""
        rows = [dimension_rows(self.truth, values[self.known]) for values in predicted]
        values = [measure_dimension(each.sum(axis=0)) for each in rows]
        draws = [measure_dimension(self.resampling.sums(each)) for each in rows]
        mean = {m: np.mean([each[m] for each in values], axis=0) for m in DIMENSION_METRICS}
        mean_draws = {m: np.mean([each[m] for each in draws], axis=0) for m in DIMENSION_METRICS}
        per_seed = {m: np.stack([each[m] for each in values]) for m in DIMENSION_METRICS}
        several = len(predicted) > 1
        no_classes = np.empty(0, np.int64)
        self.scores[name] = Scores(mean, mean_draws, no_classes, per_seed if several else {})
        found: dict[str, Any] = {
            "name": name,
            "metrics": self._intervals(values[0], draws[0]),
            "folds": self._over_folds(rows[0]),
            "seeds": None,
        }
        if several:
            over = self._intervals(mean, mean_draws)
            found["seeds"] = {
                "count": len(predicted),
                "metrics": {
                    m: {"values": _finite(per_seed[m]), "sd": _deviation(per_seed[m]), **over[m]}
                    for m in DIMENSION_METRICS
                },
            }
        return found

    def _intervals(
        self, values: Mapping[str, DoubleArray], draws: Mapping[str, DoubleArray]
    ) -> dict[str, dict[str, float | None]]:
        return intervals(values, draws, self.confidence, self.clusters.count)

    def _over_folds(self, rows: DoubleArray) -> dict[str, Any] | None:
        """Metrics of every fold with mean and deviation; None for a holdout."""
        if self.folds is None:
            return None
        folds = [rows[self.folds == fold].sum(axis=0) for fold in range(self.folds.max() + 1)]
        measured = measure_dimension(np.stack(folds))
        found = {}
        for metric, values in measured.items():
            finite = values[np.isfinite(values)]
            found[metric] = {
                "values": _finite(values),
                "mean": float(finite.mean()) if len(finite) else None,
                "sd": _deviation(finite),
            }
        return found


class DimensionScores:
    """The scorers of all dimensions of a job.

    Args:
        parts: test clips with the training clips of their fold.

    Attributes:
        means: of the training part, for each test clip [N, D].
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[tuple[Utterances, Utterances]],
        clusters: Clusters,
        resampling: Resampling,
        confidence: float,
        folds: IntArray | None,
    ) -> None:
        truth = np.concatenate([test.dimensions for test, _ in parts])
        self.means: DoubleArray = np.concatenate(
            [np.tile(_column_means(train.dimensions), (len(test), 1)) for test, train in parts]
        )
        self.scorers = [
            DimensionScorer(
                name,
                truth[:, column],
                self.means[:, column],
                clusters,
                resampling,
                confidence,
                folds,
            )
            for column, name in enumerate(names)
        ]

    def score_model(self, description: Mapping[str, Any], predicted: Sequence[DoubleArray]) -> None:
        """Score a model by its predictions [N, D] of every seed."""
        wanted = {key: description[key] for key in ("name", "role", "modality")}
        for column, scorer in enumerate(self.scorers):
            scorer.score_model(wanted, [values[:, column] for values in predicted])

    def compare(self, name: str, against: str) -> None:
        """Compare two scored models in every dimension."""
        for scorer in self.scorers:
            scorer.compare(name, against)

    def numbers(self, name: str) -> dict[str, float]:
        """Metrics of a model over its seeds, as `ccc_valence`."""
        return {
            f"{metric}_{scorer.name}": float(value)
            for scorer in self.scorers
            for metric, value in scorer.scores[name].values.items()
            if np.isfinite(value)
        }

    def describe(self) -> list[dict[str, Any]]:
        """`dimensions` of metrics.json."""
        return [scorer.describe() for scorer in self.scorers]

    def sentences(self) -> list[str]:
        """The verdicts on distillation."""
        return [each["sentence"] for scorer in self.scorers for each in scorer.comparisons]


def probe_dimensions(
    modality: Modality,
    store: FeatureStore,
    folds: Sequence[FoldData],
    limit: int,
) -> tuple[dict[str, Any], DoubleArray]:
    """A ridge regression per dimension on pooled states, fitted in every fold.

    Args:
        limit: of training clips, which are spread evenly.

    Returns:
        `name`, `role` and `modality`, and predictions [N, D] on test.
    """
    predicted = []
    for fold in folds:
        chosen = [
            ([part.ids[row] for row in rows], part.dimensions[rows])
            for part in (fold.train, fold.valid)
            for rows in [np.linspace(0, len(part) - 1, min(len(part), limit)).astype(np.int64)]
        ]
        predicted.append(ridge_predictions(store, chosen[0], chosen[1], fold.test.ids, modality))
    description = {"name": f"linear probe, {modality}", "role": "probe", "modality": modality}
    return description, np.concatenate(predicted)


def _column_means(values: DoubleArray) -> DoubleArray:
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))


def _finite(values: DoubleArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _deviation(values: DoubleArray) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None
