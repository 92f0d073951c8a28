"""Each node makes one complete copy of a store, however many processes open it."""

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


def test_a_store_at_a_uri_is_copied_once_and_read_from_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_store(tmp_path / "remote", random_clips(9))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "local"))
    store = open_store((tmp_path / "remote").as_uri())
    assert store.folder.parent == tmp_path / "local"
    for path in (tmp_path / "remote").rglob("*.arrow"):
        path.unlink()
    again = open_store((tmp_path / "remote").as_uri())
    assert again.folder == store.folder
    assert again.ids == original.ids
    again.verify()


def _copy(source: Path, cache: Path, results: multiprocessing.Queue[str]) -> None:
    results.put(str(local_copy(source, cache)))


def test_processes_that_start_at_the_same_time_share_one_copy(tmp_path: Path) -> None:
    make_store(tmp_path / "remote", random_clips(9))
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [
        context.Process(target=_copy, args=(tmp_path / "remote", tmp_path / "local", results))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    copies = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(copies) == 1
    FeatureStore(copies.pop()).verify()
    assert not list((tmp_path / "local").glob(".*.partial"))


def test_a_damaged_copy_is_discarded_and_copied_again(tmp_path: Path) -> None:
    make_store(tmp_path / "remote", random_clips(9))
    shard = next((tmp_path / "remote" / "shards").glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[:100] + b"x" + content[101:])
    with pytest.raises(MultistillError, match="does not match its checksums; copy it there again"):
        local_copy(tmp_path / "remote", tmp_path / "local")
    shard.write_bytes(content)
    FeatureStore(local_copy(tmp_path / "remote", tmp_path / "local")).verify()


def test_a_full_disk_is_reported_and_leaves_no_partial_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_store(tmp_path / "remote", random_clips(5))
    with monkeypatch.context() as patch:
        patch.setattr("multistill.features.cache.fs.copy_files", full)
        with pytest.raises(MultistillError, match=rf"No space left.*{CACHE_VARIABLE}"):
            local_copy(tmp_path / "remote", tmp_path / "local")
    assert [path.suffix for path in (tmp_path / "local").iterdir()] == [".lock"]
    FeatureStore(local_copy(tmp_path / "remote", tmp_path / "local")).verify()


def test_an_unreadable_address_is_reported(tmp_path: Path) -> None:
    for source in (tmp_path.as_uri(), "nosuch://bucket/store"):
        with pytest.raises(MultistillError, match=r"cannot be read.*credentials"):
            open_store(source)


@pytest.mark.parametrize("keys", ["AKIA1:gehe1m", "AKIA1:gehe/1m", "AKIA1:g%2Fehe1m", "gehe1m"])
def test_credentials_in_an_address_are_masked_in_errors(keys: str) -> None:
    with pytest.raises(MultistillError) as caught:
        open_store(f"nosuch://{keys}@bucket/store")
    message = str(caught.value)
    assert "nosuch://***@bucket/store" in message
    assert "AKIA1" not in message and "1m" not in message


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.SubTreeFileSystem]:
    """A bucket on a local S3 server, configured by environment variables as MinIO would be."""
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


def test_a_store_on_s3_is_copied_once_and_read_from_the_copy(
    tmp_path: Path, bucket: fs.SubTreeFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_store(tmp_path / "original", random_clips(9))
    for path in (tmp_path / "original").rglob("*"):
        if path.is_file():  # like `aws s3 sync`, which creates no objects for folders
            with bucket.open_output_stream(
                f"team/features/{path.relative_to(tmp_path / 'original')}"
            ) as stream:
                stream.write(path.read_bytes())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "local"))
    store = open_store("s3://bucket/team/features")
    assert store.folder.parent == tmp_path / "local"
    assert store.ids == original.ids
    for name in store.ids:
        assert np.array_equal(store.audio(name), original.audio(name))
    for info in bucket.get_file_info(fs.FileSelector("team/features/shards")):
        bucket.delete_file(info.path)
    open_store("s3://bucket/team/features").verify()
    with pytest.raises(MultistillError, match=r"s3://bucket/nothing cannot be read.*credentials"):
        open_store("s3://bucket/nothing")
