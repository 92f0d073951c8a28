"""Paired differences between the models of several evaluations of the same test clips.

They rest on predictions.parquet, on the resamples of `multistill.metrics.intervals` and on
`multistill.evaluation.comparisons.difference`. Of a model that was trained from several seeds the
file holds the first seed's answers. The difference is then one of means over seeds (they are in
metrics.json), its variance over test groups is that of the first seeds, and that over seeds is
added as for the verdicts. So it is with the repetitions of a cross-validation: the file holds the
first, the difference is one of all, and its variance that of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from multistill.corpora.groups import connected_groups
from multistill.corpora.manifest import classes_of
from multistill.damaged import read_table, reading
from multistill.evaluation.comparisons import Scores, difference
from multistill.metrics.classification import (
    HARD,
    SufficientStatistics,
    class_support,
    from_confusion,
)
from multistill.metrics.intervals import Clusters, Resampling
from multistill.typing import IntArray

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Answers:
    """What the models of one evaluation answered, in the order of the clips' ids.

    Attributes:
        ids: of the test clips [N], sorted.
        truth: class index [N], -1 where the votes tie.
        clusters: of the clips, by unit (`session`, `speaker`, `group`, `utterance`).
        predicted: class index [N] by model, baseline and probes included.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    truth: IntArray
    clusters: Mapping[str, Clusters]
    predicted: Mapping[str, IntArray]


def read_answers(file: Path) -> Answers:
    """Read predictions.parquet; the classes are sorted, so that two files give equal indices."""
    columns = ["utterance_id", "model", "label", "truth", "session", "speaker"]
    table = read_table(file, columns=columns)
    with reading(file):
        return _answers(table.sort_by("utterance_id"))


def _answers(table: pa.Table) -> Answers:
    classes = tuple(sorted(classes_of(table)))
    index = {name: number for number, name in enumerate(classes)}
    models = np.asarray(table["model"].to_pylist())
    labels = np.array([index[label] for label in table["label"].to_pylist()], dtype=np.int64)
    names = list(dict.fromkeys(models.tolist()))
    first = table.filter(models == names[0])
    ids = first["utterance_id"].to_pylist()
    members = {
        "session": first["session"].to_pylist(),
        "speaker": first["speaker"].to_pylist(),
        "group": connected_groups(first).codes,
        "utterance": ids,
    }
    return Answers(
        classes=classes,
        ids=tuple(ids),
        truth=np.array([index.get(label, -1) for label in first["truth"].to_pylist()]),
        clusters={unit: _clusters(unit, of_rows) for unit, of_rows in members.items()},
        predicted={name: labels[models == name] for name in names},
    )


def _clusters(unit: str, members: Any) -> Clusters:
    distinct, index = np.unique(np.asarray(members), return_inverse=True)
    return Clusters(unit, index, len(distinct))


def why_not_paired(first: Answers, other: Answers) -> str | None:
    """What of the test clips is not the same, as a clause about the other run; None if nothing."""
    ours, theirs = set(first.ids), set(other.ids)
    if len(ours) < len(first.ids) or len(theirs) < len(other.ids):
        return "a clip of a cross-corpus job is tested by the models of several corpora"
    if ours != theirs:
        return (
            f"other test clips: {len(ours & theirs)} are in both, {len(ours - theirs)} in the "
            f"first only and {len(theirs - ours)} in this one only"
        )
    changed = int((first.truth != other.truth).sum())
    if changed:
        return f"other labels of {changed} of the {len(ours)} test clips"
    return None


class PairedScores:
    """Scores of several evaluations of the same clips, on the same resamples of them.

    Args:
        answers: of any of them.
        unit: of resampling.
        resamples, seed: as of `Resampling`.
    """

    def __init__(
        self, answers: Answers, unit: str, resamples: int, seed: int, confidence: float
    ) -> None:
        self.truth = answers.truth
        self.clusters = answers.clusters[unit]
        self.confidence = confidence
        self.resampling = Resampling(self.clusters, resamples, seed)
        self.statistics = SufficientStatistics(len(answers.classes))
        self.support = class_support(self.truth, self.clusters.index, len(answers.classes))

    def score(self, predicted: IntArray, model: Mapping[str, Any]) -> Scores:
        """Hard metrics of a model on the test set and its resamples.

        Args:
            predicted: class index [N].
            model: its entry of metrics.json, for the values of several seeds.
        """
        classes = self.statistics.classes
        labelled = np.flatnonzero(self.truth >= 0)
        rows = np.zeros((len(self.truth), self.statistics.cells))
        rows[labelled, self.truth[labelled] * classes + predicted[labelled]] = 1.0
        values = from_confusion(self.statistics.confusion(rows.sum(axis=0)))
        resampled = self.statistics.confusion(self.resampling.sums(rows))
        draws = self.support.without_rare(from_confusion(resampled, self.support.present))
        seeds = model.get("seeds")
        if model.get("repetitions"):  # `predicted` is of the first
            values = {m: np.array(model["metrics"][m]["value"], dtype=float) for m in HARD}
        if not seeds:
            return Scores(values, draws, predicted)
        per_seed = {m: np.array(seeds["metrics"][m]["values"], dtype=float) for m in HARD}
        means = {m: np.mean(per_seed[m], axis=0) for m in HARD}
        return Scores(means, draws, predicted, per_seed)

    def differences(self, first: Scores, second: Scores) -> dict[str, dict[str, float | None]]:
        """`first` minus `second` by metric, with the interval of `comparisons.difference`.

        Trainings that two jobs share are not two samples of seeds: they have no variance.
        """
        if _same_trainings(first, second):
            first, second = replace(first, per_seed={}), replace(second, per_seed={})
        return {
            metric: difference(metric, first, second, self.clusters.count, self.confidence)
            for metric in HARD
        }


def _same_trainings(first: Scores, second: Scores) -> bool:
    return (
        np.array_equal(first.predicted, second.predicted)
        and first.per_seed.keys() == second.per_seed.keys()
        and all(np.array_equal(first.per_seed[m], second.per_seed[m]) for m in first.per_seed)
    )
