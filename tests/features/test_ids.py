"""Ids in an Arrow array behave like a list of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from multistill.features.ids import Ids

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=12)


@given(names=NAMES, others=NAMES, cuts=st.data())
def test_they_are_the_list_that_they_were_made_of(
    names: list[str], others: list[str], cuts: st.DataObject
) -> None:
    middle = cuts.draw(st.integers(0, len(names)))
    column = pa.chunked_array([names[:middle], names[middle:]], pa.string())
    for ids in (Ids(names), Ids(column), Ids(Ids(names))):
        assert ids == names
        assert len(ids) == len(names)
        assert [ids[row] for row in range(-len(names), len(names))] == 2 * names
        part = cuts.draw(st.slices(len(names)))
        assert ids[part] == names[part]
        assert ids[middle:].extended(ids[:middle]) == names[middle:] + names[:middle]
        assert ids == Ids(others) or names != others
        rows = np.array(cuts.draw(st.permutations(range(len(names)))), np.int64)
        assert ids.take(rows) == [names[row] for row in rows]
        places = ids.places(Ids(others)).tolist()
        assert places == [names.index(name) if name in names else -1 for name in others]


def test_a_step_beyond_64_bits_is_a_step_past_the_end() -> None:
    ids = Ids(["a", "b", "c"])
    assert ids[:: 2**70] == ["a"]
    assert ids[:: -(2**70)] == ["c"]
    assert Ids([])[:: 2**63] == []
