"""Classes that a part of the split lacks: tested and never trained, or the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ClassCounts = Mapping[str, Mapping[str, int]]
"""Part of the split -> class in order -> number of clips with this label (`tie`: without one)."""


@dataclass(frozen=True)
class CoverageGap:
    """Classes that one part has and another lacks.

    Attributes:
        kind: `classes-not-trained`, `classes-not-tested` or `classes-not-validated`.
        title: the same for people, in capitals.
        classes: in class order.
        text: what follows from it.
    """

    kind: str
    title: str
    classes: tuple[str, ...]
    text: str


_ADVICE = "compare the class counts of the parts, and change `split` or the corpora's labels"


def coverage_gaps(counts: ClassCounts) -> list[CoverageGap]:
    """The gaps of a split, the gravest first; none if every class is in every part.

    A class that no part has is no gap: the corpus lacks it.
    """
    train, valid, test = (_present(counts[part]) for part in ("train", "valid", "test"))
    order = dict.fromkeys(name for part in counts.values() for name in part)
    found = (
        (
            "classes-not-trained",
            "CLASSES NEVER TRAINED",
            (test | valid) - train,
            "clips of test or validation have this label and no training clip does, so no model "
            "can have learnt it and every mean over classes is too low",
        ),
        (
            "classes-not-tested",
            "CLASSES NEVER TESTED",
            train - test,
            "training clips have this label and no test clip does, so no result says anything "
            "about it",
        ),
        (
            "classes-not-validated",
            "CLASSES NOT IN VALIDATION",
            (train & test) - valid if valid else set(),
            "no validation clip has this label, so epochs, trials and winners are chosen without "
            "it",
        ),
    )
    return [
        CoverageGap(kind, title, classes, f"{', '.join(classes)}: {text}; {_ADVICE}.")
        for kind, title, names, text in found
        if (classes := tuple(name for name in order if name in names))
    ]


def _present(counts: Mapping[str, int]) -> set[str]:
    return {name for name, number in counts.items() if number and name != "tie"}
