"""The compact set of ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.records import SeenIds


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=40))
def test_an_id_is_new_exactly_once(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multistill.corpora.records._UNSORTED", 4)
        seen, known = SeenIds(), set()
        for name in names:
            assert seen.add_if_new(name) == (name not in known)
            known.add(name)
