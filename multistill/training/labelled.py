"""Which training clips a task reads, or is given the label of, where it is not all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from multistill.training.schedule import derived_seed
from multistill.typing import IntArray

_STREAM = 0x1ABE15
"""Keeps these draws apart from those of the batches, which use the same seed."""


def draw_labelled(labels: IntArray, share: float, seed: int) -> IntArray:
    """Rows that keep their label, ascending: a share of every class, by one order per seed.

    Clips whose votes tie are a class of their own. Every class that occurs keeps at least one
    clip. The order does not depend on the share, so a smaller share is part of a larger one, and
    models of equal seed get the same clips.

    Args:
        labels: class index [N], -1 where the votes tie.
        share: of each class, above 0 and at most 1.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> rows = draw_labelled(labels, 0.5, seed=1)
        >>> np.bincount(labels[rows]).tolist()
        [2, 1]
    """
    random = np.random.default_rng(derived_seed(seed, _STREAM))
    kept = []
    for label in np.unique(labels):
        order = random.permutation(np.flatnonzero(labels == label))
        kept.append(order[: max(1, round(share * len(order)))])
    return np.sort(np.concatenate(kept)).astype(np.int64) if kept else np.empty(0, np.int64)


def rows_of_corpora(
    shares: Mapping[str, float],
    corpora: npt.NDArray[np.object_],
    split: npt.NDArray[np.object_],
    labels: IntArray,
    seed: int,
) -> npt.NDArray[np.bool_]:
    """Rows [N] that a task over some corpora reads.

    Of training rows, a share of every class of each corpus, as `draw_labelled` draws them; of
    other parts, the rows of the corpora of which all training rows are read.

    Args:
        shares: of the training rows, by corpus; none of corpora that are not named.
        corpora: of each row [N]; split: its part; labels: its class index, -1 without one.
    """
    read = np.zeros(len(corpora), dtype=bool)
    for name, share in shares.items():
        own = corpora == name
        train = np.flatnonzero(own & (split == "train"))
        if share == 1.0:
            read |= own
        else:
            read[train[draw_labelled(labels[train], share, seed)]] = True
    return read
