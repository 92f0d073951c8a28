"""Classes that a part of the split lacks are named, whatever the part and the class."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multistill.config import CLASSES
from multistill.corpora.coverage import coverage_gaps

parts = st.fixed_dictionaries(
    {
        part: st.lists(st.integers(0, 3), min_size=len(CLASSES), max_size=len(CLASSES)).map(
            lambda numbers: dict(zip(CLASSES, numbers, strict=True))
        )
        for part in ("train", "valid", "test")
    }
)


@given(parts)
def test_every_class_that_a_part_lacks_is_named_once(counts: dict[str, dict[str, int]]) -> None:
    gaps = coverage_gaps(counts)
    named = {gap.kind: set(gap.classes) for gap in gaps}
    assert len(named) == len(gaps)
    for name in CLASSES:
        train, valid, test = (counts[part].get(name, 0) > 0 for part in ("train", "valid", "test"))
        kinds = {kind for kind, classes in named.items() if name in classes}
        if (test or valid) and not train:
            assert kinds == {"classes-not-trained"}
        elif train and not test:
            assert kinds == {"classes-not-tested"}
        elif train and test and not valid:
            assert kinds == {"classes-not-validated"}
        else:
            assert not kinds
    for gap in gaps:
        assert gap.text.startswith(", ".join(gap.classes))
        assert gap.classes == tuple(name for name in CLASSES if name in gap.classes)


def test_a_class_that_the_corpus_lacks_is_no_gap() -> None:
    counts = {part: {"happy": 3, "sad": 2} for part in ("train", "valid", "test")}
    assert coverage_gaps(counts) == []
