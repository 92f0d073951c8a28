"""From predictions to the facts of the report: metrics, intervals, slices, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multistill.config import CLASSES, EvaluationConfig
from multistill.evaluation.comparisons import Scored, compare
from multistill.evaluation.utterances import Training, Utterances
from multistill.metrics.classification import (
    CALIBRATION,
    CELLS,
    HARD,
    SufficientStatistics,
    entropy,
    from_confusion,
    per_class,
)
from multistill.metrics.intervals import Resampling, choose_clusters, interval, intervals
from multistill.typing import DoubleArray, IntArray

BASELINE = "majority baseline"
MOST_GROUPS = 60
"""A table of more sessions than this is read by nobody."""


@dataclass(frozen=True)
class Prediction:
    """A model's answers on the test clips.

    Attributes:
        probabilities: [N, 7].
        calibrated: the same after temperature scaling, or None where there was no
            validation set to fit on.
    """

    name: str
    probabilities: DoubleArray
    calibrated: DoubleArray | None = None
    temperature: float | None = None
    compare_to: str | None = None


class Scorer:
    """Scores any number of models on the same clips and the same resamples of them."""

    def __init__(
        self, clips: Utterances, training: Training, config: EvaluationConfig, seed: int
    ) -> None:
        self.clips = clips
        self.training = training
        self.confidence = config.confidence
        self.statistics = SufficientStatistics(config.calibration_bins)
        self.clusters = choose_clusters(clips.sessions, clips.speakers)
        self.resampling = Resampling(self.clusters, config.resamples, seed)
        self.groups = _groups(clips, training)
        self.scored: dict[str, Scored] = {}
        self.repeated: dict[str, Scored] = {}

    def baseline(self) -> dict[str, Any]:
        """Always the most frequent class of training, with training's shares as distribution."""
        label = self.training.majority
        size = len(self.clips)
        rows = self.statistics.rows_of(
            self.clips.truth,
            np.full(size, label, dtype=np.int64),
            np.tile(self.training.prior, (size, 1)),
            self.clips.shares,
        )
        values, draws = self._measure(rows)
        train_share = self.training.counts[label] / self.training.counts.sum()
        return {
            "kind": "majority",
            "name": BASELINE,
            "label": CLASSES[label],
            "train_share": float(train_share),
            "metrics": intervals(values, draws, self.confidence),
            "slices": self._slices(rows),
        }

    def model(self, prediction: Prediction) -> dict[str, Any]:
        """Metrics with intervals, confusion, calibration and slices of one model."""
        clips = self.clips
        rows = self.statistics.rows(clips.truth, prediction.probabilities, clips.shares)
        values, draws = self._measure(rows)
        self.scored[prediction.name] = Scored(
            values, draws, prediction.probabilities.argmax(axis=1)
        )
        sums = rows.sum(axis=0)
        confusion = self.statistics.confusion(sums)
        return {
            "metrics": intervals(values, draws, self.confidence),
            "confusion": confusion.astype(int).tolist(),
            "classes": per_class(confusion),
            "reliability": self.statistics.reliability(sums).tolist(),
            "calibration": self._calibrated(prediction),
            "slices": self._slices(rows),
        }

    def seeds(self, prediction: Prediction, repeats: Sequence[DoubleArray]) -> dict[str, Any]:
        """The hard metrics over trainings from several seeds.

        Args:
            prediction: of the first seed, already scored by `model`.
            repeats: probabilities [N, 7] of each other seed.
        Returns:
            `count`, and per metric `values`, `sd` and the mean over seeds with the interval
            that resampled clips give it.
        """
        answers = [prediction.probabilities, *repeats]
        truth, shares = self.clips.truth, self.clips.shares
        measured = [
            self._measure(self.statistics.rows(truth, answer, shares)) for answer in answers
        ]
        values = {m: np.stack([values[m] for values, _ in measured]) for m in HARD}
        draws = {m: np.mean([draws[m] for _, draws in measured], axis=0) for m in HARD}
        means = {m: np.mean(values[m], axis=0) for m in HARD}
        predicted = self.scored[prediction.name].predicted
        self.repeated[prediction.name] = Scored(means, draws, predicted, len(answers))
        metrics = {}
        for m in HARD:
            found = [_number(value) for value in values[m]]
            sd = None if None in found else float(np.std(values[m], ddof=1))
            metrics[m] = {
                "values": found,
                "sd": sd,
                **interval(float(means[m]), draws[m], self.confidence),
            }
        return {"count": len(answers), "metrics": metrics}

    def comparison(self, name: str, against: str) -> dict[str, Any]:
        """Paired difference of two models that `model` has scored: of their means over
        seeds where both were trained from as many."""
        first, second = self.scored[name], self.scored[against]
        if name in self.repeated and against in self.repeated:
            means = self.repeated[name], self.repeated[against]
            if means[0].seeds == means[1].seeds:
                first, second = means
        return compare(name, first, against, second, self.clips.truth, self.confidence)

    def facts(self) -> dict[str, Any]:
        """What the test set is, for the head of every table."""
        truth = self.clips.truth
        return {
            "clips": len(truth),
            "decided": int((truth >= 0).sum()),
            "ties": int((truth < 0).sum()),
            "without_features": self.clips.without_features,
            "sessions": len(set(self.clips.sessions)),
            "speakers": len(set(self.clips.speakers)),
            "resampled": self.clusters.facts(),
        }

    def _measure(self, rows: DoubleArray) -> tuple[dict[str, DoubleArray], dict[str, DoubleArray]]:
        values = self.statistics.measure(rows.sum(axis=0))
        return values, self.statistics.measure(self.resampling.sums(rows))

    def _calibrated(self, prediction: Prediction) -> dict[str, Any] | None:
        if prediction.calibrated is None:
            return None
        rows = self.statistics.rows(self.clips.truth, prediction.calibrated, self.clips.shares)
        values, draws = self._measure(rows)
        found = intervals(values, draws, self.confidence)
        return {
            "temperature": prediction.temperature,
            **{name: found[name] for name in CALIBRATION},
        }

    def _slices(self, rows: DoubleArray) -> list[dict[str, Any]]:
        """Hard metrics inside groups of clips; what is resampled has no interval of its own."""
        cells = rows[:, :CELLS]
        drawn = [mask for by, _, mask in self.groups if by != self.clusters.unit]
        draws = iter(self.resampling.sums_of(cells, drawn))
        found = []
        for by, name, mask in self.groups:
            values = from_confusion(self.statistics.confusion(cells[mask].sum(axis=0)))
            if by == self.clusters.unit:
                metrics = {
                    m: {"value": _number(values[m]), "low": None, "high": None} for m in HARD
                }
            else:
                spread = from_confusion(self.statistics.confusion(next(draws)))
                metrics = {m: interval(float(values[m]), spread[m], self.confidence) for m in HARD}
            decided = int((self.clips.truth[mask] >= 0).sum())
            found.append({"by": by, "name": name, "clips": decided, "metrics": metrics})
        return found


def _number(value: DoubleArray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _groups(clips: Utterances, training: Training) -> list[tuple[str, str, np.ndarray]]:
    """(kind, name, mask [N]) of every slice that splits the test set."""
    found: list[tuple[str, str, np.ndarray]] = []
    for by, names in (("session", clips.sessions), ("gender", clips.genders)):
        present = sorted({name for name in names if name})
        if 1 < len(present) <= MOST_GROUPS:
            found += [(by, name, np.array([n == name for n in names])) for name in present]
    found += _agreement(clips)
    heard = np.array([text in training.texts for text in clips.texts], dtype=bool)
    if heard.any() and not heard.all():
        found.append(("transcript", "also stands in training", heard))
        found.append(("transcript", "not in training", ~heard))
    return found


def _agreement(clips: Utterances) -> list[tuple[str, str, np.ndarray]]:
    """Bands of vote entropy; nothing where no clip has divided votes."""
    spread = entropy(clips.shares)
    divided = (spread > 1e-6) & (clips.truth >= 0)
    if divided.sum() < 2:
        return []
    middle = float(np.median(spread[divided]))
    bands: list[tuple[str, np.ndarray]] = [
        ("all raters agree", spread <= 1e-6),
        (f"entropy up to {middle:.2f} nats", (spread > 1e-6) & (spread <= middle)),
        (f"entropy above {middle:.2f} nats", spread > middle),
    ]
    known: IntArray = clips.truth
    return [("votes", name, mask) for name, mask in bands if (mask & (known >= 0)).any()]


def compare_all(scorer: Scorer, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """A line for every model that names the model it is to be judged against."""
    return [
        scorer.comparison(prediction.name, prediction.compare_to)
        for prediction in predictions
        if prediction.compare_to is not None
    ]
