"""The folder of a local Ray: which one it is, and what keeps Ray from starting in it."""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multistill import doctor
from multistill.cluster import scratch
from multistill.cluster.scratch import max_scratch_bytes, scratch_folder, scratch_problem


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp"),
        ({"TMPDIR": "/a"}, "/a"),
        ({"RAY_TMPDIR": "/b"}, "/b"),
        ({"TMPDIR": "/a", "RAY_TMPDIR": "/b"}, "/b"),
    ],
)
def test_the_folder_is_the_one_that_ray_chooses(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(scratch_folder()) == folder
    assert get_default_ray_temp_dir() == f"{folder}/ray"


def long_folder(tmp_path: Path, length: int, letter: str = "a") -> Path:
    """A folder whose path has exactly this many bytes."""
    size = len(letter.encode())
    missing = length - len(str(tmp_path)) - 1
    name = letter * (missing // size) + "x" * (missing % size)
    folder = tmp_path / name
    folder.mkdir()
    assert len(os.fsencode(folder)) == length
    return folder


@pytest.mark.parametrize("letter", ["a", "가"])
def test_a_path_that_is_too_long_for_sockets_is_told_in_bytes(
    letter: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = Path("/tmp") / f"s{os.getpid()}"
    short.mkdir()
    try:
        fits = long_folder(short, max_scratch_bytes(), letter)
        monkeypatch.setenv("TMPDIR", str(fits))
        assert scratch_problem() is None
        long = long_folder(short, max_scratch_bytes() + 1, letter)
        monkeypatch.setenv("TMPDIR", str(long))
        problem = scratch_problem()
        assert problem is not None
        assert f"{max_scratch_bytes() + 1} bytes" in problem[0]
        # Following the advice.
        monkeypatch.setenv("RAY_TMPDIR", re.search(r"RAY_TMPDIR=(\S+)", problem[1])[1])  # type: ignore[index]
        assert scratch_problem() is None
    finally:
        shutil.rmtree(short)


def test_a_full_or_lost_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/version")  # a file
    assert "cannot be written" in scratch_problem()[0]  # type: ignore[index]
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(9, 9, 2**20))
    assert "is full (1 MiB are free)" in scratch_problem()[0]  # type: ignore[index]


FIND = """
from multistill import doctor
for check in (doctor._disk, doctor._ray):
    for finding in check(None):
        if not finding.ok and finding.name in ("disk", "ray"):
            print(finding.name, finding.sentence, finding.fix)
"""


def test_doctor_looks_at_the_same_folder_and_its_advice_is_no_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 110)))
    # In a process of its own: where Ray runs already, it starts none.
    result = subprocess.run(
        [sys.executable, "-c", FIND], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"disk", "ray"}
    for line in lines:
        assert "too long for Ray's sockets" in line
        assert "RAY_TMPDIR=/tmp" in line
        assert "multistill doctor" not in line
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert any(str(tmp_path) in finding.sentence for finding in doctor._disk(None))
