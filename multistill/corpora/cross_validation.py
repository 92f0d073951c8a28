"""Cross-validation: which groups are tested together, and train and valid of every fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multistill.config import ProtocolConfig, SplitConfig
from multistill.config.protocol import MAX_FOLDS
from multistill.corpora.cross_corpus import TRAINED_ON, split_corpora
from multistill.corpora.groups import Groups, codes_of, split_groups
from multistill.corpora.manifest import class_indices, classes_of
from multistill.corpora.rows import Columns
from multistill.corpora.split import PARTS, LeakCounter, Split, hash64, refuse_leaks
from multistill.errors import UsageError


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a protocol.

    Attributes:
        groups: the unit that is tested together.
        fold: of each row [N]: the one in which it is tested.
        names: of the folds: the group's name in leave-one-out, numbers from 1 in k-fold.
        inner: the unit that validation and out-of-fold teachers keep together.
        turns: the groups of `inner` in the order in which they take turns at validation.
        inner_order: the same in the order in which they are dealt to the teacher's folds.
    """

    groups: Groups
    fold: npt.NDArray[np.int32]
    names: list[str]
    inner: Groups
    turns: list[int]
    inner_order: list[int]


def cross_validation(
    table: Columns, protocol: ProtocolConfig, split: SplitConfig
) -> CrossValidation:
    """Assign every group of a manifest's rows to a fold.

    Folds of k-fold have equal numbers of groups but for one, drawn by `split.seed`.

    Raises:
        UsageError: there are too few groups, or more than `MAX_FOLDS` to be tested alone.
    """
    if protocol.by == "corpus":
        codes, encoded = codes_of(table, "corpus")
        groups = Groups(codes, encoded.to_pylist())
        inner = split_groups(table, "speaker" if split.by == "speaker" else "session")
    else:
        groups = inner = split_groups(table, protocol.by)
    names, title = groups.names, f"protocol: {protocol.kind} by {protocol.by}"
    alone = protocol.kind == "leave-one-out"
    folds = len(names) if alone else protocol.folds
    fewest = 2 if protocol.by == "corpus" else 3  # one to test, one to validate, one to train on
    if len(names) < max(fewest, folds):
        raise UsageError(
            f"{title} needs at least {max(fewest, folds)} groups, and there are {len(names)} "
            f"({', '.join(sorted(names)[:5])}); add data, use fewer `folds`, or another `by`"
        )
    if folds > MAX_FOLDS:
        raise UsageError(
            f"{title} would be {folds} folds, each with trainings of its own, and {MAX_FOLDS} are "
            "the most; use `kind: k-fold`"
        )
    if alone:
        order = sorted(range(len(names)), key=lambda group: names[group])
    else:
        order = _ordered(names, split.seed, "protocol")
    fold_of = np.empty(len(names), np.int32)
    fold_of[order] = np.arange(len(names)) % folds
    return CrossValidation(
        groups,
        fold_of[groups.codes],
        [names[group] for group in order] if alone else [str(k + 1) for k in range(folds)],
        inner,
        turns=_ordered(inner.names, split.seed, "valid"),
        inner_order=_ordered(inner.names, split.seed, "fold"),
    )


def _ordered(names: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Indices of the names in the order of a seeded hash."""
    hashes = [hash64(seed, purpose, name) for name in names]
    return sorted(range(len(names)), key=lambda index: (hashes[index], index))


def split_fold(folds: CrossValidation, number: int, split: SplitConfig) -> Split:
    """Train, valid and test of one fold.

    The groups take turns at validation over the folds; `split.valid` is their share of all
    groups, at least one.
    """
    inner, test = folds.inner, folds.fold == number
    outside = set(np.unique(inner.codes[~test]).tolist())
    names, order = inner.names, folds.turns
    count = max(1, round(split.valid * len(names))) if split.valid else 0
    count = min(count, len(outside) - 1)
    start = number * count % len(order)
    turned = [group for group in (*order[start:], *order[:start]) if group in outside]
    code = np.full(len(names), PARTS.index("train"), np.int8)
    code[turned[:count]] = PARTS.index("valid")
    part = np.where(test, PARTS.index("test"), code[inner.codes]).astype(np.int8)
    valid = set(turned[:count])
    dealt = [group for group in folds.inner_order if group in outside]
    dealt.sort(key=valid.__contains__)  # as in `assign_folds`, training groups first
    of_group = np.full(len(names), -1, np.int32)
    of_group[dealt] = np.arange(len(dealt)) % split.folds
    fold = of_group[inner.codes]
    facts: dict[str, Any] = {
        "name": folds.names[number],
        "test": sorted({folds.groups.names[code] for code in folds.groups.codes[test].tolist()}),
        "groups": {"train": len(turned) - count, "valid": count},
    }
    return Split(part, np.where(test, -1, fold).astype(np.int32), inner, facts)


def split_folds(
    table: Columns, protocol: ProtocolConfig, split: SplitConfig
) -> tuple[Split, list[Split]]:
    """All rows in test with their fold, and the split of every fold.

    Of `cross-corpus`, all rows in the part that their own corpus gives them. With
    `protocol.repeats` the folds of all repetitions, one after another, each drawn by a seed of its
    own (`split.seed` plus the number of the repetition); rows have that of the first.

    Raises:
        UsageError: as `cross_validation`, or a fold has no training clip of a class.
    """
    if protocol.kind == "cross-corpus":
        whole, folds = split_corpora(table, split)
        _require_classes(table, folds)
        return whole, folds
    crossed = cross_validation(table, protocol, split)
    folds = [split_fold(crossed, number, split) for number in range(len(crossed.names))]
    for repetition in range(1, protocol.repeats):
        seeded = split.model_copy(update={"seed": split.seed + repetition})
        other = cross_validation(table, protocol, seeded)
        folds += [split_fold(other, number, seeded) for number in range(len(other.names))]
    if protocol.repeats > 1:
        for number, fold in enumerate(folds):
            repetition, place = divmod(number, len(crossed.names))
            name = f"{repetition + 1}.{crossed.names[place]}"
            fold.facts.update(name=name, repetition=repetition)
    _require_classes(table, folds)
    test = np.full(len(table), PARTS.index("test"), np.int8)
    facts = {
        "by": protocol.by,
        "protocol": protocol.kind,
        "folds": [fold.facts for fold in folds],
        "reassigned": [],
    }
    return Split(test, crossed.fold, crossed.inner, facts), folds


def leaks_of_folds(
    table: Columns, protocol: ProtocolConfig, split: SplitConfig, folds: Sequence[Split]
) -> dict[str, Any]:
    """What occurs in several parts of a fold, as `split.leaks`, summed over the folds.

    Of several repetitions, the counts are those of the first; all are looked at.

    Raises:
        UsageError: a session or a speaker does, and `split.allow_leak` is not set.
    """
    total: dict[str, Any] = {}
    counter = LeakCounter(table)
    for fold in folds:
        leaked = counter.count(fold.part)
        own = f"protocol.by: {protocol.by}" if protocol.kind != "cross-corpus" else None
        refuse_leaks(leaked, split, own)
        if fold.facts.get("repetition", 0):
            continue
        total = {name: total[name] + value for name, value in leaked.items()} if total else leaked
    return total


def _require_classes(table: Columns, folds: Sequence[Split]) -> None:
    """Refuse a fold whose models could not learn a class that others are tested on."""
    truth = class_indices(table)
    classes = classes_of(table)
    tested = set(truth[truth >= 0].tolist())
    for number, fold in enumerate(folds):
        trained = set(truth[(fold.part == PARTS.index("train")) & (truth >= 0)].tolist())
        if missing := sorted(tested - trained):
            raise UsageError(
                f"protocol: fold {number + 1} ({_role(fold)}) has no training "
                f"clip of {', '.join(classes[index] for index in missing)}; merge these classes or "
                "leave them out (`labels`), lower `split.valid`, or use another `protocol`"
            )


def _role(fold: Split) -> str:
    if TRAINED_ON in fold.facts:
        return f"trained on {fold.facts[TRAINED_ON]}"
    return f"tested: {fold.facts['name']}"
