"""Clips are found by their id in a memory-mapped index."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.errors import MultistillError
from multistill.features import index as module
from multistill.features.index import INDEX, LENGTHS, POSITION, Index, write_index

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


def clips(names: list[str]) -> pa.Table:
    numbers = np.arange(len(names), dtype=np.int32)
    columns = dict.fromkeys((*POSITION, *LENGTHS), numbers)
    return pa.table({"utterance_id": pa.array(names, pa.string()), **columns})


@pytest.mark.parametrize("buckets", [2**64 - 1, 3], ids=["hashes", "hashes that collide"])
@settings(max_examples=40, deadline=None)
@given(
    names=st.sets(NAMES, min_size=1, max_size=30),
    others=st.lists(NAMES, max_size=10),
    data=st.data(),
)
def test_every_id_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory,
    buckets: int,
    names: set[str],
    others: list[str],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("index")
    written = data.draw(st.permutations(sorted(names)))
    hashes = module.hashes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hashes", lambda ids: hashes(ids) % np.uint64(buckets))
        patch.setattr(module, "_REMEMBERED", 8)  # so that some are forgotten
        patch.setattr(module, "_FEW", data.draw(st.sampled_from([2, 100])))
        patch.setattr(module, "_COMPARED", 4)
        patch.setattr(module, "_SPREAD", data.draw(st.sampled_from([0, 2, 100])))
        write_index(folder, clips(written))
        index = Index(folder)
        assert index.ids == sorted(names)
        assert len(index) == len(names)
        for _ in range(2):
            asked = [*data.draw(st.permutations(written)), *others]
            rows = index.find(asked)
            expected = {name: row for row, name in enumerate(sorted(names))}
            assert rows.tolist() == [expected.get(name, -1) for name in asked]
        place = {name: number for number, name in enumerate(written)}
        found = index.columns["row"][index.find(written)]
        assert found.tolist() == [place[name] for name in written]


def test_an_id_that_is_there_twice_is_refused_and_the_index_stays(tmp_path: Path) -> None:
    write_index(tmp_path, clips(["a", "b"]))
    before = (tmp_path / INDEX).read_bytes()
    with pytest.raises(ValueError, match="twice"):
        write_index(tmp_path, clips(["b", "a", "b"]))
    assert (tmp_path / INDEX).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [INDEX]


def test_an_open_index_outlives_its_replacement(tmp_path: Path) -> None:
    write_index(tmp_path, clips(["a", "b"]))
    opened = Index(tmp_path)
    write_index(tmp_path, clips(["c"]))
    assert opened.find(["a", "b", "c"]).tolist() == [0, 1, -1]
    assert Index(tmp_path).find(["a", "b", "c"]).tolist() == [-1, -1, 0]


def altered(table: pa.Table, kind: str) -> pa.Table:
    columns = {name: table[name] for name in table.column_names}
    if kind == "a column is missing":
        del columns["row"]
    elif kind == "rows that are not there":
        columns["by_hash"] = pa.array(np.full(len(table), len(table)))
    elif kind == "another type":
        columns["shard"] = table["shard"].cast(pa.int64())
    return pa.table(columns)


@pytest.mark.parametrize(
    "kind", ["a column is missing", "rows that are not there", "another type", "cut", "empty"]
)
def test_a_damaged_index_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / INDEX
    write_index(tmp_path, clips(["a", "b", "c"]))
    if kind in {"cut", "empty"}:
        path.write_bytes(path.read_bytes()[: 0 if kind == "empty" else -100])
    else:
        with pa.ipc.open_file(str(path)) as reader:
            table = altered(reader.read_all(), kind)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(MultistillError, match=f"{re.escape(str(path))} is damaged"):
        Index(tmp_path).find(["a", "b", "c"])
