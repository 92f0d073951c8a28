"""Scores of predicted dimensions: CCC, Pearson and RMSE with intervals, and paired differences.

Every dimension is scored on the test clips that have a value of it, on resamples of whole groups of
these clips (`multistill.metrics.intervals`), which are the same for all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from multistill.errors import MultistillError
from multistill.evaluation.candidates import evenly_spaced, params_end_to_end
from multistill.evaluation.comparisons import Scores, difference, judge_family, paired
from multistill.evaluation.figures import PRIMARY_DIMENSION_METRIC
from multistill.evaluation.folds import FoldData
from multistill.evaluation.repetitions import spread
from multistill.evaluation.utterances import Utterances
from multistill.metrics.dimensions import (
    DIMENSION_METRICS,
    dimension_metrics,
    dimension_rows,
    measure_dimension,
)
from multistill.metrics.intervals import Clusters, Resampling, intervals
from multistill.models.context import StateStore
from multistill.models.ridge import ridge_predictions
from multistill.models.spec import Modality
from multistill.typing import DoubleArray, IntArray

BASELINE = "training mean"


class DimensionScorer:
    """Scores any number of models on one dimension of the same clips, or on several.

    Args:
        name: of the dimension, or of the mean over several.
        truth: [N, D], NaN where there is no value. Metrics are means over the dimensions.
        means: of the training part, for each test clip [N, D].
        clusters: of all test clips.
        folds: of a cross-validation, in which each clip [N] was tested; None for a holdout.

    Raises:
        MultistillError: no clip has a value.
    """

    def __init__(
        self,
        name: str,
        truth: DoubleArray,
        means: DoubleArray,
        clusters: Clusters,
        resampling: Resampling,
        confidence: float,
        folds: IntArray | None,
    ) -> None:
        self.name = name
        self.known = np.isfinite(truth).any(axis=1)
        if not self.known.any():
            raise MultistillError(
                f"no test clip with features has a value of {name}; look into quarantine.parquet "
                "of the features, or remove it from `tasks`"
            )
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
        self.baseline = self.score(BASELINE, [means])

    def score_model(self, description: Mapping[str, Any], predicted: Sequence[DoubleArray]) -> None:
        """Score a model.

        Args:
            description: `name`, `role` and `modality`.
            predicted: [N, D] of every seed.
        """
        entry = {**description, **self.score(str(description["name"]), predicted)}
        (self.references if description["role"] == "probe" else self.models).append(entry)

    def compare(
        self, name: str, against: str, not_trained: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Paired differences of two scored models; with one seed of either, no verdict.

        Args:
            not_trained: model -> why it learnt nothing; a comparison with one has no verdict.
        """
        self.comparisons.append(
            paired(
                name,
                self.scores[name],
                against,
                self.scores[against],
                self.clusters.count,
                self.confidence,
                DIMENSION_METRICS,
                PRIMARY_DIMENSION_METRIC,
                not_trained,
                of=self.name,
            )
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

    def score(self, name: str, predicted: Sequence[DoubleArray]) -> dict[str, Any]:
        """Metrics of the first seed; over several, means with their deviation in `seeds`."""
        rows = [self._rows(values[self.known]) for values in predicted]
        values = [_measure(each.sum(axis=0)) for each in rows]
        draws = [_measure(self.resampling.sums(each)) for each in rows]
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

    def _rows(self, predicted: DoubleArray) -> DoubleArray:
        """Sufficient statistics [N, 6 D] of the dimensions, side by side."""
        columns = zip(self.truth.T, predicted.T, strict=True)
        return np.concatenate([dimension_rows(x, y) for x, y in columns], axis=1)

    def difference(self, name: str, against: str) -> dict[str, float | None]:
        """Paired difference of the CCC of two scored names, `BASELINE` included."""
        first, second = self.scores[name], self.scores[against]
        return difference(
            PRIMARY_DIMENSION_METRIC, first, second, self.clusters.count, self.confidence
        )

    def _intervals(
        self, values: Mapping[str, DoubleArray], draws: Mapping[str, DoubleArray]
    ) -> dict[str, dict[str, float | None]]:
        return intervals(values, draws, self.confidence, self.clusters.count)

    def _over_folds(self, rows: DoubleArray) -> dict[str, Any] | None:
        """Metrics of every fold with mean and deviation; None for a holdout."""
        if self.folds is None:
            return None
        folds = [rows[self.folds == fold].sum(axis=0) for fold in range(self.folds.max() + 1)]
        return spread(_measure(np.stack(folds)))


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
                truth[:, [column]],
                self.means[:, [column]],
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
            scorer.score_model(wanted, [values[:, [column]] for values in predicted])

    def compare(
        self, name: str, against: str, not_trained: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Compare two scored models in every dimension."""
        for scorer in self.scorers:
            scorer.compare(name, against, not_trained)

    def judge(self) -> None:
        """Adjust the verdicts for all comparisons of all dimensions, which are one family."""
        made = [each for scorer in self.scorers for each in scorer.comparisons]
        judged = iter(judge_family(made, self.scorers[0].confidence)) if made else iter(())
        for scorer in self.scorers:
            scorer.comparisons = [next(judged) for _ in scorer.comparisons]

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
    store: StateStore,
    folds: Sequence[FoldData],
    limit: int,
    encoders: Mapping[str, Any],
) -> tuple[dict[str, Any], DoubleArray]:
    """A ridge regression per dimension on pooled states, fitted in every fold.

    Args:
        limit: of training clips, which are spread evenly.

    Returns:
        the probe's entry of metrics.json, with the mean CCC on `validation`, and predictions
        [N, D] on test.
    """
    predicted: list[DoubleArray] = []
    validation: list[float] = []
    dimensions = folds[0].test.dimensions.shape[1]
    for fold in folds:
        chosen = [
            ([part.ids[row] for row in rows], part.dimensions[rows])
            for part in (fold.train, fold.valid)
            for rows in [evenly_spaced(len(part), limit)]
        ]
        ids = [*chosen[1][0], *fold.test.ids]
        found = ridge_predictions(store, chosen[0], chosen[1], ids, modality)
        split = len(chosen[1][0])
        predicted.append(found[split:])
        metrics = dimension_metrics(
            [str(column) for column in range(dimensions)], found[:split], chosen[1][1]
        )
        if "ccc" in metrics:
            validation.append(metrics["ccc"])
    widths = {"audio": store.audio_dim, "text": store.text_dim}
    states = 2 * sum(width for name, width in widths.items() if modality in (name, "multimodal"))
    parameters = dimensions * (states + 1)
    description = {
        "name": f"linear probe, {modality}",
        "role": "probe",
        "modality": modality,
        "params_trainable": parameters,
        "params_end_to_end": params_end_to_end(parameters, modality, encoders),
        "validation": float(np.mean(validation)) if len(validation) == len(folds) else None,
    }
    return description, np.concatenate(predicted)


def dimension_columns(
    names: Sequence[str], predicted: DoubleArray, truth: DoubleArray
) -> dict[str, pa.Array]:
    """Columns of predictions.parquet: e.g. `valence` and `valence_truth`, null for NaN."""
    columns: dict[str, pa.Array] = {}
    for column, name in enumerate(names):
        for title, values in ((name, predicted), (f"{name}_truth", truth)):
            columns[title] = pa.array(values[:, column].astype(np.float32), from_pandas=True)
    return columns


def _measure(sums: DoubleArray) -> dict[str, DoubleArray]:
    """Means over D dimensions of the metrics [...] of summed rows [..., 6 D]."""
    dimensions = sums.reshape(*sums.shape[:-1], -1, 6)
    return {name: values.mean(axis=-1) for name, values in measure_dimension(dimensions).items()}


def _column_means(values: DoubleArray) -> DoubleArray:
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))


def _finite(values: DoubleArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _deviation(values: DoubleArray) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None
