"""One whole copy of a store per node, whoever asks first."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from features_case import make_store, random_clips

from multistill.errors import MultistillError
from multistill.features.cache import CACHE_VARIABLE, local_copy
from multistill.features.store import FeatureStore


def test_a_store_behind_an_address_is_read_through_a_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_store(tmp_path / "far", random_clips(9))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "near"))
    store = FeatureStore((tmp_path / "far").as_uri())
    assert store.folder.parent == tmp_path / "near"
    for path in (tmp_path / "far").rglob("*.arrow"):
        path.unlink()
    again = FeatureStore((tmp_path / "far").as_uri())
    assert again.folder == store.folder
    assert again.ids == original.ids
    again.verify()


def _copy(source: Path, cache: Path, results: multiprocessing.Queue[str]) -> None:
    results.put(str(local_copy(source, cache)))


def test_processes_that_start_together_share_one_copy(tmp_path: Path) -> None:
    make_store(tmp_path / "far", random_clips(9))
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [
        context.Process(target=_copy, args=(tmp_path / "far", tmp_path / "near", results))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1
    FeatureStore(found.pop()).verify()
    assert not list((tmp_path / "near").glob(".*.partial"))


def test_a_copy_that_was_interrupted_or_damaged_is_never_read(tmp_path: Path) -> None:
    make_store(tmp_path / "far", random_clips(9))
    shard = next((tmp_path / "far" / "shards").glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[:100] + b"x" + content[101:])
    with pytest.raises(MultistillError, match="does not match its checksum"):
        local_copy(tmp_path / "far", tmp_path / "near")
    shard.write_bytes(content)
    FeatureStore(local_copy(tmp_path / "far", tmp_path / "near")).verify()


def test_an_address_without_a_store_is_named(tmp_path: Path) -> None:
    for source in (tmp_path.as_uri(), "nosuch://bucket/store"):
        with pytest.raises(MultistillError, match=r"cannot be read.*credentials"):
            FeatureStore(source)
