"""Intervals that respect who spoke: the bootstrap over sessions, shared by all models.

Utterances of one session resemble each other, so resampling utterances gives intervals
that are far too narrow (Ferrer and Riera, "Good practices for evaluation of machine
learning systems", arXiv 2412.03700). Whole sessions are drawn instead, with replacement
(Davison and Hinkley 1997, section 3.8). Every model is scored on the same draws, so
differences between models are paired.

With few sessions the draw of whole sessions is too coarse: two sessions that happen to
agree would give an interval of no width. Below `FEW` sessions the utterances inside a
drawn session are therefore drawn again too (the two-stage bootstrap), which errs on the
wide side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multistill.typing import DoubleArray

FEW = 10
CHUNK = 4_000_000
"""Weights held at once by the two-stage draw; the memory it may take is 8 bytes each."""


@dataclass(frozen=True)
class Clusters:
    """What is resampled: the rows of each unit, and what the unit is called."""

    unit: str
    index: np.ndarray
    """Cluster number of each row [N]."""
    count: int

    @property
    def few(self) -> bool:
        return self.count < FEW

    def facts(self) -> dict[str, object]:
        return {"unit": self.unit, "count": self.count, "two_stage": self.few}


def choose_clusters(sessions: Sequence[str], speakers: Sequence[str]) -> Clusters:
    """Sessions; speakers where there is one session only; utterances where neither varies."""
    for unit, names in (("session", sessions), ("speaker", speakers)):
        found, index = np.unique(np.asarray(names, dtype=str), return_inverse=True)
        if len(found) > 1:
            return Clusters(unit, index, len(found))
    return Clusters("utterance", np.arange(len(sessions)), len(sessions))


@dataclass(frozen=True)
class Resampling:
    """The same draws for whatever is summed over the rows.

    Args:
        clusters: units of the rows.
        resamples: number of draws.
        seed: of the draws; equal seeds give equal draws.
    """

    clusters: Clusters
    resamples: int
    seed: int

    def sums(self, rows: DoubleArray) -> DoubleArray:
        """Sums [resamples, K] over each draw of the lines [N, K]."""
        return self.sums_of(rows, [np.ones(len(rows), dtype=bool)])[0]

    def sums_of(self, rows: DoubleArray, groups: Sequence[np.ndarray]) -> list[DoubleArray]:
        """The same, over the lines of each group (masks [N]) only."""
        if self.clusters.few and self.clusters.unit != "utterance":
            parts: list[list[DoubleArray]] = [[] for _ in groups]
            for weights in self._two_stage():
                for part, mask in zip(parts, groups, strict=True):
                    part.append(weights[:, mask] @ rows[mask])
            return [np.concatenate(part) for part in parts]
        counts = self._counts(np.random.default_rng(self.seed), self.resamples)
        return [counts @ self._totals(rows, mask) for mask in groups]

    def _totals(self, rows: DoubleArray, mask: np.ndarray) -> DoubleArray:
        """Sums [clusters, K] of the group's lines in each cluster."""
        index = self.clusters.index[mask]
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        totals = np.zeros((self.clusters.count, rows.shape[1]))
        if len(present):
            totals[present] = np.add.reduceat(rows[mask][order], starts, axis=0)
        return totals

    def _counts(self, draw: np.random.Generator, size: int) -> DoubleArray:
        """How often each cluster is drawn: [size, clusters]."""
        clusters = self.clusters.count
        return draw.multinomial(clusters, np.full(clusters, 1 / clusters), size=size).astype(float)

    def _two_stage(self) -> Iterator[DoubleArray]:
        """How often each row is drawn, a part of the resamples at a time: [part, N]."""
        draw = np.random.default_rng(self.seed)
        members = [
            np.flatnonzero(self.clusters.index == cluster) for cluster in range(self.clusters.count)
        ]
        rows = len(self.clusters.index)
        part = max(1, CHUNK // max(rows, 1))
        for start in range(0, self.resamples, part):
            size = min(part, self.resamples - start)
            counts = self._counts(draw, size).astype(np.int64)
            weights = np.zeros((size, rows))
            for cluster, inside in enumerate(members):
                share = np.full(len(inside), 1 / len(inside))
                weights[:, inside] = draw.multinomial(counts[:, cluster] * len(inside), share)
            yield weights


def interval(value: float, draws: DoubleArray, confidence: float) -> dict[str, float | None]:
    """Value with the percentile interval of its draws; None where it is not defined."""
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(finite):
        return {"value": None, "low": None, "high": None}
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return {"value": float(value), "low": float(low), "high": float(high)}


def intervals(
    values: Mapping[str, DoubleArray], draws: Mapping[str, DoubleArray], confidence: float
) -> dict[str, dict[str, float | None]]:
    """`interval` of every metric by name.

    Resamples repeat clips, which makes the bins of the ECE look less calibrated than they
    are: its draws lie above its value. They are shifted back to it, and kept above zero.
    """
    found = {}
    for name, value in values.items():
        own = draws[name]
        if name == "ece" and np.isfinite(own).any():
            own = np.maximum(own - np.nanmedian(own) + value, 0.0)
        found[name] = interval(float(value), own, confidence)
    return found
