"""Confidence intervals of test metrics, from groups of utterances that are resampled as wholes.

Utterances of one session or one person resemble each other, so resampling utterances gives
intervals that are far too narrow (Ferrer and Riera, "Good practices for evaluation of machine
learning systems", arXiv 2412.03700). Whole groups are resampled instead, with replacement
(Davison and Hinkley 1997, section 3.8). Every model is scored on the same resamples, so
differences between models are paired.

A test set has few groups, often three to ten. The percentiles of K resampled groups are then too
narrow: their deviation lacks the factor sqrt(K / (K - 1)), and it is itself an estimate with
K - 1 degrees of freedom. An interval is therefore the value plus or minus Student's t quantile
times the corrected deviation of the resamples, as for a mean of K groups (Cameron, Gelbach and
Miller, "Bootstrap-based improvements for inference with clustered errors", 2008, on why few
clusters need it). `benchmarks/intervals.py` measures the coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import t as student_t

from multistill.typing import DoubleArray

SHARES = ("accuracy", "uar", "macro_f1", "weighted_f1", "top2", "accuracy_with_ties", "ece", "tv")
BOUNDS = dict.fromkeys((*SHARES, "coverage", "aurc", "excess_aurc"), (0.0, 1.0)) | {
    "brier": (0.0, 2.0),
    "js": (0.0, float(np.log(2))),
    "ccc": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
}
"""Range of the metrics that have an upper bound; the others start at zero."""
FEW = 20
"""Below this number of groups an interval says little about speakers who were not tested."""
MAX_KEPT = 4_000_000
"""Counts of clusters in resamples that are kept in memory (32 MB); more are drawn anew."""


@dataclass(frozen=True)
class Clusters:
    """The unit of resampling and the cluster of every row.

    Attributes:
        unit: `session`, `speaker`, `group` (speakers who share sessions) or `utterance`.
        index: cluster number of each row [N].
        only: what the split keeps together, where all rows are of one such group and parts of it
            are resampled; None where there are several, which are then the unit.
    """

    unit: str
    index: np.ndarray
    count: int
    only: str | None = None

    @property
    def few(self) -> bool:
        return self.count < FEW

    @property
    def one_group(self) -> bool:
        return self.only is not None

    def describe(self) -> dict[str, object]:
        return {
            "unit": self.unit,
            "count": self.count,
            "few": self.few,
            "one_group": self.one_group,
            "kept_together": self.only or self.unit,
        }


def choose_clusters(
    groups: Sequence[str],
    sessions: Sequence[str],
    speakers: Sequence[str],
    by: str = "session",
) -> Clusters:
    """The groups that the split keeps together; if there is only one, its sessions, speakers
    or utterances, whichever is the first that varies (`one_group`).

    A partition into groups that equals that by session or by speaker has the name of that.

    Args:
        by: `split.by`; with `speaker`, a partition that equals both has that name.
    """
    indices = {}
    for unit, names in (("group", groups), ("session", sessions), ("speaker", speakers)):
        distinct, index = np.unique(np.asarray(names, dtype=str), return_inverse=True)
        indices[unit] = Clusters(unit, index, len(distinct))
    grouped = indices["group"]
    kept = "group"
    for unit in ("session", "speaker") if by == "speaker" else ("speaker", "session"):
        pairs = {*zip(grouped.index.tolist(), indices[unit].index.tolist(), strict=True)}
        if len(pairs) == grouped.count == indices[unit].count:
            kept = unit
    if grouped.count > 1:
        return indices[kept]
    varying = next((indices[u] for u in ("session", "speaker") if indices[u].count > 1), None)
    if varying is None:
        varying = Clusters("utterance", np.arange(len(sessions)), len(sessions))
    return replace(varying, only=kept)


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
        counts = self.counts()
        return [counts @ self._cluster_sums(rows, mask) for mask in groups]

    def counts(self) -> DoubleArray:
        """How often each resample holds each cluster, [resamples, clusters]; read only."""
        few = self.resamples * self.clusters.count <= MAX_KEPT
        return self._kept if few else self._draw()

    @cached_property
    def _kept(self) -> DoubleArray:
        counts = self._draw()
        counts.flags.writeable = False
        return counts

    def _draw(self) -> DoubleArray:
        clusters = self.clusters.count
        return (
            np.random.default_rng(self.seed)
            .multinomial(clusters, np.full(clusters, 1 / clusters), size=self.resamples)
            .astype(float)
        )

    def _cluster_sums(self, rows: DoubleArray, mask: np.ndarray) -> DoubleArray:
        """Sums [clusters, K] of the group's rows in each cluster."""
        index = self.clusters.index[mask]
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        sums = np.zeros((self.clusters.count, rows.shape[1]))
        if len(present):
            sums[present] = np.add.reduceat(rows[mask][order], starts, axis=0)
        return sums


def sampling_variance(draws: DoubleArray, clusters: int) -> float:
    """Variance of a metric over test sets of `clusters` groups, from its resampled values.

    Args:
        draws: values on the resamples; NaN where the metric is not defined.

    Returns:
        NaN if fewer than two resamples have a value, or there is one group.
    """
    finite = draws[np.isfinite(draws)]
    if len(finite) < 2 or clusters < 2:
        return float("nan")
    return float(np.var(finite, ddof=1)) * clusters / (clusters - 1)


def satterthwaite(variances: Sequence[float], degrees: Sequence[int]) -> float:
    """Degrees of freedom of a sum of independent variance estimates (Satterthwaite 1946).

    Examples:
        >>> satterthwaite([1.0, 1.0], [4, 4])
        8.0
    """
    total = sum(variances)
    if total == 0 or not np.isfinite(total):
        return float(sum(degrees))
    return float(1 / sum((v / total) ** 2 / d for v, d in zip(variances, degrees, strict=True)))


def t_interval(
    value: float,
    variance: float,
    degrees: float,
    confidence: float,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, float | None]:
    """Value with its interval, cut at the bounds of the metric; None where undefined."""
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    if not np.isfinite(variance) or degrees <= 0:
        return {"value": float(value), "low": None, "high": None}
    half = float(student_t.ppf((1 + confidence) / 2, degrees)) * float(np.sqrt(variance))
    low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
    return {"value": float(value), "low": float(low), "high": float(high)}


def p_value(value: float, variance: float, degrees: float) -> float | None:
    """Two-sided p of a difference of zero, by Student's t; None without a variance.

    It is below one minus the confidence exactly where `t_interval` excludes zero.

    Examples:
        >>> round(p_value(0.1, 0.0025, 10), 3)
        0.073
    """
    if not np.isfinite(value) or not np.isfinite(variance) or variance <= 0 or degrees <= 0:
        return None
    return float(2 * student_t.sf(abs(value) / np.sqrt(variance), degrees))


def intervals(
    values: Mapping[str, DoubleArray],
    draws: Mapping[str, DoubleArray],
    confidence: float,
    clusters: int,
) -> dict[str, dict[str, float | None]]:
    """`t_interval` of every metric by name.

    Args:
        values: on the test set.
        draws: per metric, the values [resamples] on the resamples.
        clusters: number of groups that were resampled.
    """
    return {
        name: t_interval(
            float(value),
            sampling_variance(draws[name], clusters),
            clusters - 1,
            confidence,
            BOUNDS.get(name, (0.0, np.inf)),
        )
        for name, value in values.items()
    }
