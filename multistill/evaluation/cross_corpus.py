"""The cross-corpus matrix: models trained on each corpus, tested on each.

Every pair of corpora is a slice of the test set, so all cells of all models are scored like
everything else, on the same resamples. Of a model that was trained from several seeds, a cell is
the mean over them; its interval is over resampled groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multistill.evaluation.folds import FoldData
from multistill.evaluation.slices import Slice

METRICS = ("uar", "macro_f1")


def cells(folds: Sequence[FoldData]) -> list[Slice]:
    """A slice per pair of corpora over the joined test clips of all folds; none if not crossed.

    `by` names the corpus that trained, `name` the corpus that is tested.
    """
    if not folds or any(fold.trained_on is None for fold in folds):
        return []
    trained = np.repeat([str(fold.trained_on) for fold in folds], [len(f.test) for f in folds])
    tested = np.array([corpus for fold in folds for corpus in fold.test.corpora])
    names = [str(fold.trained_on) for fold in folds]
    return [
        Slice(f"trained on {first}, tested on", second, (trained == first) & (tested == second))
        for first in names
        for second in names
    ]


def matrices(slices: Sequence[Slice], models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The matrix of every model, probe and of the majority; None without `slices`.

    Args:
        slices: of `cells`.
        models: entries of metrics.json, majority first.

    Returns:
        `corpora`, and per model `name`, `role`, `not_trained` and `rows`: a row per training
        corpus with a cell per tested corpus, each `clips` and per metric `value`, `low`, `high`.
    """
    if not slices:
        return None
    count = round(len(slices) ** 0.5)
    corpora = [part.name for part in slices[:count]]
    found = []
    for model in models:
        seeds = (model.get("seeds") or {}).get("slices")
        scored = seeds or model["slices"][len(model["slices"]) - len(slices) :]
        flat = [
            {"clips": part["clips"], **{name: part["metrics"][name] for name in METRICS}}
            for part in scored
        ]
        found.append(
            {
                "name": model["name"],
                "role": model.get("role", "majority"),
                "not_trained": model.get("not_trained"),
                "rows": [flat[count * row : count * (row + 1)] for row in range(count)],
            }
        )
    return {"corpora": corpora, "models": found}
