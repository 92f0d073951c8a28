"""Values of the job's dimensions in the corpora: off the scale, missing, how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multistill.corpora.loaders.fields import off_scale
from multistill.corpora.manifest import dimension_array, read_manifest
from multistill.corpora.rejections import Examples
from multistill.corpora.rows import Columns
from multistill.corpora.split import PARTS
from multistill.errors import MultistillError
from multistill.wording import counted


def refuse_off_scale(notes: Mapping[str, Examples], dimensions: Sequence[str]) -> None:
    """Raise if values of a dimension of the job are off their corpus's scale.

    Args:
        notes: of all corpora, by kind.

    Raises:
        MultistillError: how many, and the first.
    """
    for name in dimensions:
        found = notes.get(off_scale(name))
        if found is not None:
            raise MultistillError(
                f"{counted(found.count, 'value')} of {name} off the scale (first: "
                f"{found.cases[0]}); correct {'them' if found.count > 1 else 'it'}, or set `scale` "
                "of the corpus, e.g. scale: [1, 7]"
            )


def refuse_missing(
    rows: Columns,
    part: npt.NDArray[np.integer],
    dimensions: Sequence[str],
    fold: int | None,
    instead: str = "remove `{}` from `tasks`",
) -> None:
    """Raise if a dimension cannot be learnt, chosen on or tested, for lack of different values.

    Args:
        part: index into `split.PARTS` of each row.
        fold: its number, under cross-validation.
        instead: what else than another corpus or split would do; `{}` is the dimension.

    Raises:
        MultistillError: names the dimension and the part.
    """
    values = dimension_array(rows, dimensions)
    for column, name in enumerate(dimensions):
        for index, title in enumerate(PARTS):
            there = values[(part == index) & np.isfinite(values[:, column]), column]
            if (part == index).any() and len(np.unique(there)) < 2:
                of_fold = "" if fold is None else f" of fold {fold}"
                raise MultistillError(
                    f"`{name}`: the {title} part{of_fold} has {len(there)} values, none of which "
                    f"differ, so nothing can be learnt or measured; add values, change `split`, or "
                    f"{instead.format(name)}"
                )


def refuse_unlearnable(
    manifest: Path, dimensions: Sequence[str], fold: int | None, instead: str
) -> None:
    """`refuse_missing` of a finished manifest, for dimensions that are no tasks of the job.

    Args:
        manifest: its folder.
    """
    rows = read_manifest(manifest, ["split", *dimensions])
    numbers = {name: index for index, name in enumerate(PARTS)}
    part = np.array([numbers.get(split, -1) for split in rows["split"].to_pylist()])
    refuse_missing(rows, part, dimensions, fold, instead)


def count_dimensions(rows: Columns, dimensions: Sequence[str]) -> dict[str, Any]:
    """`dimensions` of the summary: utterances with a value by dimension; nothing without any."""
    if not dimensions:
        return {}
    counts = np.isfinite(dimension_array(rows, dimensions)).sum(axis=0)
    return {"dimensions": dict(zip(dimensions, counts.tolist(), strict=True))}
