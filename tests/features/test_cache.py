"""One whole copy of a store per node, whoever asks first."""

from __future__ import annotations

import errno
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.features_case import make_store, random_clips
from pyarrow import fs

from multistill.errors import MultistillError
from multistill.features.cache import CACHE_VARIABLE, local_copy, open_store
from multistill.features.store import FeatureStore


def test_a_store_behind_an_address_is_read_through_a_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_store(tmp_path / "far", random_clips(9))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "near"))
    store = open_store((tmp_path / "far").as_uri())
    assert store.folder.parent == tmp_path / "near"
    for path in (tmp_path / "far").rglob("*.arrow"):
        path.unlink()
    again = open_store((tmp_path / "far").as_uri())
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


def test_a_copy_for_which_there_is_no_room_is_told_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_store(tmp_path / "far", random_clips(5))
    with monkeypatch.context() as patch:
        patch.setattr("multistill.features.cache.fs.copy_files", full)
        with pytest.raises(MultistillError, match=rf"No space left.*{CACHE_VARIABLE}"):
            local_copy(tmp_path / "far", tmp_path / "near")
    assert [path.suffix for path in (tmp_path / "near").iterdir()] == [".lock"]
    FeatureStore(local_copy(tmp_path / "far", tmp_path / "near")).verify()


def test_an_address_without_a_store_is_named(tmp_path: Path) -> None:
    for source in (tmp_path.as_uri(), "nosuch://bucket/store"):
        with pytest.raises(MultistillError, match=r"cannot be read.*credentials"):
            open_store(source)


@pytest.mark.parametrize("keys", ["AKIA1:gehe1m", "AKIA1:gehe/1m", "AKIA1:g%2Fehe1m", "gehe1m"])
def test_keys_in_an_address_are_not_repeated(keys: str) -> None:
    with pytest.raises(MultistillError) as caught:
        open_store(f"nosuch://{keys}@bucket/store")
    said = str(caught.value)
    assert "nosuch://***@bucket/store" in said
    assert "AKIA1" not in said and "1m" not in said


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.SubTreeFileSystem]:
    """A bucket of a real S3 API, reached as a cluster reaches MinIO: by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    system = fs.S3FileSystem(
        endpoint_override=address, scheme="http", allow_bucket_creation=True, region="us-east-1"
    )
    system.create_dir("bucket")
    try:
        yield fs.SubTreeFileSystem("bucket", system)
    finally:
        server.stop()


def test_a_store_on_s3_is_fetched_once_and_read_from_the_node(
    tmp_path: Path, bucket: fs.SubTreeFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_store(tmp_path / "made", random_clips(9))
    for path in (tmp_path / "made").rglob("*"):
        if path.is_file():  # as `aws s3 sync`: no object stands for a folder
            with bucket.open_output_stream(
                f"team/features/{path.relative_to(tmp_path / 'made')}"
            ) as stream:
                stream.write(path.read_bytes())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "near"))
    store = open_store("s3://bucket/team/features")
    assert store.folder.parent == tmp_path / "near"
    assert store.ids == original.ids
    for name in store.ids:
        assert np.array_equal(store.audio(name), original.audio(name))
    for info in bucket.get_file_info(fs.FileSelector("team/features/shards")):
        bucket.delete_file(info.path)
    open_store("s3://bucket/team/features").verify()
    with pytest.raises(MultistillError, match=r"s3://bucket/nothing cannot be read.*credentials"):
        open_store("s3://bucket/nothing")
