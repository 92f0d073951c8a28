"""The protocol `cross-corpus`: a fold per corpus, which alone trains its models."""

from __future__ import annotations

from typing import Any

import numpy as np

from multistill.config import SplitConfig
from multistill.corpora.groups import codes_of, split_groups
from multistill.corpora.rows import Columns
from multistill.corpora.split import PARTS, Split, split_rows
from multistill.errors import UsageError

TRAINED_ON = "trained_on"
"""Key of a fold's facts: the corpus that its models are trained and chosen on."""


def split_corpora(table: Columns, split: SplitConfig) -> tuple[Split, list[Split]]:
    """The split of every corpus on its own, and a fold per corpus, in the order of their names.

    In a fold, one corpus has the parts that `split` gives it, and all clips of the others are in
    test. So models of a fold are tested on the held-out part of their own corpus and on every
    other corpus as a whole.

    Raises:
        UsageError: there is one corpus only, or one cannot be split.
    """
    codes, encoded = codes_of(table, "corpus")
    names: list[str] = encoded.to_pylist()
    if len(names) < 2:
        raise UsageError(
            f"protocol: cross-corpus trains on each corpus and tests on the others, and all clips "
            f"are of {names[0]}; add a corpus, or use another `protocol`"
        )
    groups = split_groups(table, split.by)
    whole_part, whole_fold = np.zeros(len(table), np.int8), np.full(len(table), -1, np.int32)
    folds: list[Split] = []
    reassigned: list[str] = []
    for name in sorted(names):
        own = codes == names.index(name)
        try:
            inner = split_rows(table.filter(own), split)
        except UsageError as error:
            raise UsageError(f"protocol: cross-corpus: the corpus `{name}`: {error}") from error
        part = np.full(len(table), PARTS.index("test"), np.int8)
        fold = np.full(len(table), -1, np.int32)
        part[own], fold[own] = inner.part, inner.fold
        whole_part[own], whole_fold[own] = inner.part, inner.fold
        reassigned += inner.facts["reassigned"]
        facts: dict[str, Any] = {
            "name": name,
            TRAINED_ON: name,
            "test": sorted(names),
            "groups": {key: inner.facts["groups"][key] for key in ("train", "valid")},
        }
        folds.append(Split(part, fold, groups, facts))
    facts = {
        "by": split.by,
        "protocol": "cross-corpus",
        "folds": [fold.facts for fold in folds],
        "reassigned": reassigned,
    }
    return Split(whole_part, whole_fold, groups, facts), folds
