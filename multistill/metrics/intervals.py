"""Confidence intervals by a bootstrap over sessions, with resamples shared by all models.

Utterances of one session resemble each other, so resampling utterances gives intervals that are
far too narrow (Ferrer and Riera, "Good practices for evaluation of machine learning systems",
arXiv 2412.03700). Whole sessions are resampled instead, with replacement (Davison and Hinkley
1997, section 3.8). Every model is scored on the same resamples, so differences between models
are paired.

With few sessions, resampling whole sessions is too coarse: two sessions that happen to agree
would give an interval of zero width. Below `FEW` sessions the utterances inside a drawn session
are therefore resampled too (the two-stage bootstrap), which errs on the wide side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multistill.typing import DoubleArray

FEW = 10
CHUNK = 4_000_000
"""Weights that the two-stage bootstrap keeps in memory at a time, 8 bytes each."""


@dataclass(frozen=True)
class Clusters:
    """The unit of resampling and the cluster of every row."""

    unit: str
    index: np.ndarray
    """Cluster number of each row [N]."""
    count: int

    @property
    def few(self) -> bool:
        return self.count < FEW

    def describe(self) -> dict[str, object]:
        return {"unit": self.unit, "count": self.count, "two_stage": self.few}


def choose_clusters(sessions: Sequence[str], speakers: Sequence[str]) -> Clusters:
    """Sessions; speakers if there is only one session; utterances if neither varies."""
    for unit, names in (("session", sessions), ("speaker", speakers)):
        distinct, index = np.unique(np.asarray(names, dtype=str), return_inverse=True)
        if len(distinct) > 1:
            return Clusters(unit, index, len(distinct))
    return Clusters("utterance", np.arange(len(sessions)), len(sessions))


@dataclass(frozen=True)
class Resampling:
    """Bootstrap resamples that are the same for everything summed over the rows.

    Args:
        clusters: the cluster of every row.
        resamples: number of resamples.
        seed: of the random draws; equal seeds give equal resamples.
    """

    clusters: Clusters
    resamples: int
    seed: int

    def sums(self, rows: DoubleArray) -> DoubleArray:
        """Sums [resamples, K] of the rows [N, K] in each resample."""
        return self.group_sums(rows, [np.ones(len(rows), dtype=bool)])[0]

    def group_sums(self, rows: DoubleArray, groups: Sequence[np.ndarray]) -> list[DoubleArray]:
        """As `sums`, over the rows of each group (masks [N]) only."""
        if self.clusters.few and self.clusters.unit != "utterance":
            chunks: list[list[DoubleArray]] = [[] for _ in groups]
            for weights in self._two_stage():
                for sums, mask in zip(chunks, groups, strict=True):
                    sums.append(weights[:, mask] @ rows[mask])
            return [np.concatenate(sums) for sums in chunks]
        counts = self._counts(np.random.default_rng(self.seed), self.resamples)
        return [counts @ self._cluster_sums(rows, mask) for mask in groups]

    def _cluster_sums(self, rows: DoubleArray, mask: np.ndarray) -> DoubleArray:
        """Sums [clusters, K] of the group's rows in each cluster."""
        index = self.clusters.index[mask]
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        sums = np.zeros((self.clusters.count, rows.shape[1]))
        if len(present):
            sums[present] = np.add.reduceat(rows[mask][order], starts, axis=0)
        return sums

    def _counts(self, rng: np.random.Generator, size: int) -> DoubleArray:
        """How often each cluster is drawn: [size, clusters]."""
        clusters = self.clusters.count
        return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size).astype(float)

    def _two_stage(self) -> Iterator[DoubleArray]:
        """How often each row is drawn, in chunks of resamples: [chunk, N]."""
        rng = np.random.default_rng(self.seed)
        members = [
            np.flatnonzero(self.clusters.index == cluster) for cluster in range(self.clusters.count)
        ]
        rows = len(self.clusters.index)
        chunk = max(1, CHUNK // max(rows, 1))
        for start in range(0, self.resamples, chunk):
            size = min(chunk, self.resamples - start)
            counts = self._counts(rng, size).astype(np.int64)
            weights = np.zeros((size, rows))
            for cluster, inside in enumerate(members):
                uniform = np.full(len(inside), 1 / len(inside))
                weights[:, inside] = rng.multinomial(counts[:, cluster] * len(inside), uniform)
            yield weights


def interval(value: float, draws: DoubleArray, confidence: float) -> dict[str, float | None]:
    """Value with the percentile interval of its resampled values; None where undefined."""
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
    are: the resampled values lie above the value itself. They are shifted so that their median
    equals the value, and clipped at zero.
    """
    result = {}
    for name, value in values.items():
        resampled = draws[name]
        if name == "ece" and np.isfinite(resampled).any():
            resampled = np.maximum(resampled - np.nanmedian(resampled) + value, 0.0)
        result[name] = interval(float(value), resampled, confidence)
    return result
