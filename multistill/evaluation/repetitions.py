"""Predictions of the folds of a cross-validation as predictions of the test clips.

With `protocol.repeats` every clip is tested once per repetition. The counts behind the metrics
(confusions, sums of losses, bins) are averaged over the repetitions, clip by clip: accuracy and
UAR are then the means over the repetitions, and F1 is that of the pooled counts (Forman and
Scholz, "Apples-to-apples in cross-validation studies", SIGKDD Explorations 12, 2010). Predictions
are not averaged: that would score an ensemble of as many models, which nobody hands over.
Repetitions share all their clips, so they are not independent samples: their deviation says how
much the drawing of folds changes a score, and narrows no interval (Nadeau and Bengio 2003;
Vanwinckelen and Blockeel, "On estimating model accuracy with repeated cross-validation", 2012).
Intervals resample groups of clips, each with its predictions of all repetitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multistill.evaluation.utterances import Majority, TrainingStatistics, Utterances, majority_of
from multistill.typing import DoubleArray, IntArray


@dataclass(frozen=True)
class PooledClips:
    """The test clips in the order of the first repetition's folds.

    Attributes:
        clips: each once.
        rows: per fold, the place among `clips` of each clip that it tests.
        repetition: of each fold, from 0.
        fold: number of the fold that tests each clip in each repetition [R, N].
    """

    clips: Utterances
    rows: Sequence[IntArray]
    repetition: Sequence[int]
    fold: IntArray

    @classmethod
    def of(cls, tests: Sequence[Utterances], repetition: Sequence[int]) -> PooledClips:
        """Join the test clips of all folds.

        Args:
            tests: per fold. Every repetition has the same clips, in folds of its own.
        """
        first = [test for test, number in zip(tests, repetition, strict=True) if number == 0]
        clips = Utterances.joined(first)
        place = {name: row for row, name in enumerate(clips.ids)}
        rows, start = [], 0
        for test, number in zip(tests, repetition, strict=True):
            if number == 0:  # by position: a cross-corpus matrix tests a clip in several folds
                rows.append(np.arange(start, start + len(test)))
                start += len(test)
            else:
                rows.append(np.array([place[name] for name in test.ids], np.int64))
        fold = np.zeros((max(repetition) + 1, len(clips)), np.int64)
        for number, (own, repeat) in enumerate(zip(rows, repetition, strict=True)):
            fold[repeat, own] = number
        return cls(clips, rows, repetition, fold)

    @property
    def repetitions(self) -> int:
        return len(self.fold)

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Values per fold [n, ...] as those of all clips, [N, ...], or [R, N, ...] where R > 1."""
        joined = np.zeros((*self.fold.shape, *values[0].shape[1:]), values[0].dtype)
        for own, repeat, value in zip(self.rows, self.repetition, values, strict=True):
            joined[repeat, own] = value
        return joined[0] if self.repetitions == 1 else joined

    def majority(
        self, trainings: Sequence[TrainingStatistics], tests: Sequence[Utterances]
    ) -> Majority:
        """The majority baseline; labels and priors as `join`, a transcript seen in any."""
        folds = [majority_of(*pair) for pair in zip(tests, trainings, strict=True)]
        seen = self.join([fold.seen for fold in folds])
        return Majority(
            label=self.join([fold.label for fold in folds]),
            prior=self.join([fold.prior for fold in folds]),
            seen=np.asarray(np.atleast_2d(seen).any(axis=0)),
            share=float(np.mean([fold.share for fold in folds])),
        )


def first_of(values: np.ndarray, dimensions: int) -> np.ndarray:
    """An array of so many dimensions; of one more, which are repetitions, the first.

    For what is of single predictions and has no average: confidence, speakers, lists of clips.
    """
    return np.asarray(values[0]) if values.ndim > dimensions else values


@dataclass(frozen=True)
class PooledRows:
    """Rows of `SufficientStatistics`, averaged over the repetitions.

    Attributes:
        rows: [N, K].
        repetitions: their sums in every repetition [R, K].
        folds: their sums in every fold [F, K]; None for a holdout.
    """

    rows: DoubleArray
    repetitions: DoubleArray
    folds: DoubleArray | None


def pool_rows(
    rows_of: Callable[[int], DoubleArray], repetitions: int, fold: IntArray | None
) -> PooledRows:
    """Average and sum the rows of all repetitions, one at a time.

    Args:
        rows_of: of a repetition, from 0.
        fold: [R, N]; None for a holdout.
    """
    mean: Any = 0.0
    sums: list[DoubleArray] = []
    folds: list[DoubleArray] = []
    for repetition in range(repetitions):
        rows = rows_of(repetition)
        mean = mean + rows / repetitions
        sums.append(rows.sum(axis=0))
        if fold is not None:
            own, numbers = fold[repetition], range(len(folds), int(fold[repetition].max()) + 1)
            folds += [rows[own == number].sum(axis=0) for number in numbers]
    return PooledRows(mean, np.stack(sums), np.stack(folds) if folds else None)


def spread(measured: Mapping[str, DoubleArray]) -> dict[str, Any]:
    """`values`, `mean` and `sd` of every metric; one that is not defined is None, and left out."""
    found: dict[str, Any] = {}
    for name, values in measured.items():
        finite = values[np.isfinite(values)]
        found[name] = {
            "values": [float(value) if np.isfinite(value) else None for value in values],
            "mean": float(finite.mean()) if len(finite) else None,
            "sd": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        }
    return found
