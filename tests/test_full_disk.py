"""A full disk is recognised whatever library meets it, and costs nothing but the attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.small_disk import filled, small_disk

from multistill.errors import MultistillError
from multistill.full_disk import FullDiskError, is_full, writing
from multistill.models.tensors_file import write_tensors
from multistill.workspace import write_json

TABLE = pa.table({"a": np.arange(100_000)})


def arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, TABLE.schema) as writer:
        writer.write_table(TABLE)


def numpy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.arange(100_000))


WRITERS: list[Callable[[Path], None]] = [
    arrow,
    numpy,
    lambda path: pq.write_table(TABLE, path),
    lambda path: write_json(path, ["x" * 100_000]),
    lambda path: write_tensors(path, {"a": torch.arange(100_000)}),
]


def test_every_library_s_error_of_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 300) as disk, filled(disk):
        for number, write in enumerate(WRITERS):
            with pytest.raises(FullDiskError, match="is full; free"), writing(disk, "parts"):
                write(disk / str(number))


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file: '/data/[Errno 28]'"),
        ValueError("28"),
        MultistillError("the disk is full [Errno 28]"),
        RuntimeError("os error 281"),
    ],
)
def test_other_errors_are_left_as_they_are(error: Exception, tmp_path: Path) -> None:
    assert not is_full(error)
    with pytest.raises(type(error)) as raised, writing(tmp_path, "parts"):
        raise error
    assert raised.value is error


def test_a_quota_and_what_caused_an_error_count(tmp_path: Path) -> None:
    assert is_full(OSError(122, "Disk quota exceeded"))
    try:
        raise RuntimeError("the actor failed") from OSError(28, "No space left on device")
    except RuntimeError as error:
        assert is_full(error)
