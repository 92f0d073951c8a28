"""Several tests at once: p-values that hold for the whole family.

Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
Statistics 6 (1979): the chance that any true null hypothesis of the family is rejected stays below
the level, whatever the tests have to do with each other. It rejects all that Bonferroni's
correction rejects, and more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values, in the order of the given ones; None stays None and does not count.

    Rejecting those at or below a level is Holm's procedure at that level; a single p-value stays
    what it is.

    Examples:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    tested = [index for index, p in enumerate(p_values) if p is not None]
    ranked = np.array(sorted((p_values[index], index) for index in tested), dtype=float)
    adjusted: list[float | None] = [None] * len(p_values)
    if not tested:
        return adjusted
    factors = np.arange(len(tested), 0, -1)
    stepwise = np.minimum(np.maximum.accumulate(factors * ranked[:, 0]), 1.0)
    for index, p in zip(ranked[:, 1].astype(int).tolist(), stepwise.tolist(), strict=True):
        adjusted[index] = p
    return adjusted
