"""Artifacts are built once, appear atomically and are found by fingerprint."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import multistill
from multistill.errors import MultistillError, UsageError
from multistill.workspace import (
    MAX_NAME_BYTES,
    Artifact,
    Workspace,
    atomic_path,
    canonical,
    clear,
    file_name,
    fingerprint,
    read_json,
    to_json,
    write_atomic,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


numbers = st.floats() | st.floats().map(np.float64) | st.just(float("nan")) | st.integers()
structures = st.recursive(
    numbers | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(structures)
def test_json_holds_no_nan_whatever_is_written(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for text in (to_json(value), to_json(value, indent=2), canonical(value)):
        json.loads(text, parse_constant=refuse)
    finite = to_json({"a": [1.5, float("nan"), {"b": -float("inf")}], "c": (float("inf"), "NaN")})
    assert json.loads(finite) == {"a": [1.5, None, {"b": None}], "c": [None, "NaN"]}


def test_json_is_written_through_one_writer_only() -> None:
    """Elsewhere, NaN would become the word NaN, which no other reader of JSON knows."""
    allowed = {
        "workspace.py": 2,
        "features/store_writer.py": 1,  # the schema of a shard: names and sizes
        "tracking/journal.py": 1,  # numbers are prepared by `to_json_number`
        "tracking/server.py": 1,  # the size of a request
        "cli/options.py": 1,  # a quoted path
        "pipeline/slurm_job.py": 1,  # a quoted path
        "search/journal_file.py": 1,  # as Optuna writes its lines
        "inference/rows.py": 1,  # a line of its own per clip; refuses NaN
    }
    package = Path(multistill.__file__).parent
    found = {
        str(path.relative_to(package)): count
        for path in package.rglob("*.py")
        if (count := path.read_text(encoding="utf-8").count("json.dump"))
    }
    # `json.dumps` in a docstring counts, too.
    found["workspace.py"] -= 1
    assert found == allowed


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_fingerprint_ignores_the_order_of_keys(config: dict[str, object]) -> None:
    reordered = dict(reversed(list(config.items())))
    assert fingerprint("k", 1, config, {}) == fingerprint("k", 1, reordered, {})


def test_fingerprint_depends_on_every_argument() -> None:
    fingerprints = {
        fingerprint("k", 1, {"a": 1}, {"x": "1"}),
        fingerprint("q", 1, {"a": 1}, {"x": "1"}),
        fingerprint("k", 2, {"a": 1}, {"x": "1"}),
        fingerprint("k", 1, {"a": 2}, {"x": "1"}),
        fingerprint("k", 1, {"a": 1}, {"x": "2"}),
    }
    assert len(fingerprints) == 5


def test_make_builds_an_artifact_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path).open()
    calls = []

    def build(out: Path) -> dict[str, int]:
        calls.append(out)
        (out / "a.txt").write_text("a")
        return {"rows": 3}

    first = workspace.make("stage", "f1", build, config={"k": 1}, inputs={"in": "f0"})
    second = workspace.make("stage", "f1", build)
    assert len(calls) == 1
    assert second.path == first.path == tmp_path / "stage" / "f1"
    assert second.summary == {"rows": 3}
    assert second.meta["inputs"] == {"in": "f0"}


def test_an_artifact_that_is_not_intact_is_made_again_under_its_lock(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path).open()
    said: list[str] = []

    def is_lost(artifact: Artifact) -> bool:
        assert workspace.is_building("stage", "f1")
        return False

    first = workspace.make("stage", "f1", lambda out: {"number": 1}, is_intact=is_lost)
    assert first.summary == {"number": 1}
    again = workspace.make(
        "stage", "f1", lambda out: {"number": 2}, is_intact=is_lost, log=said.append
    )
    assert again.summary == {"number": 2}
    assert said == ["stage-f1 refers to files that are gone or changed; it is made again"]
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["f1"]
    kept = workspace.make("stage", "f1", lambda out: {"number": 3}, is_intact=lambda _: True)
    assert kept.summary == {"number": 2}


def test_failed_build_leaves_no_artifact_but_keeps_its_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path).open()

    def fail(out: Path) -> None:
        (out / "shard-0").write_text("done")
        raise MultistillError("no")

    with pytest.raises(MultistillError):
        workspace.make("stage", "f1", fail)
    assert workspace.find("stage", "f1") is None
    assert [p.name for p in (tmp_path / "stage").iterdir()] == [".f1.partial"]

    def resume(out: Path) -> None:
        assert (out / "shard-0").read_text() == "done"

    assert workspace.make("stage", "f1", resume).path.joinpath("shard-0").exists()


def test_killed_build_leaves_no_artifact(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom multistill.workspace import Workspace\n"
        "def build(out):\n    (out / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
        "Workspace(sys.argv[1]).open().make('stage', 'f1', build)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60)
    assert process.returncode == -9
    workspace = Workspace(tmp_path)
    assert workspace.find("stage", "f1") is None
    workspace.make(
        "stage", "f1", lambda out: clear(out) and None
    )  # the lock was released at the kill
    assert workspace.find("stage", "f1") is not None


def test_concurrent_builds_of_one_artifact_run_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path).open()
    builds = []
    messages: list[str] = []

    def build(out: Path) -> None:
        builds.append(1)
        time.sleep(0.3)

    threads = [
        threading.Thread(target=lambda: workspace.make("s", "f", build, log=messages.append))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert any("waiting" in message for message in messages)


def test_full_disk_is_a_multistill_error(tmp_path: Path) -> None:
    def build(out: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(MultistillError, match="is full"):
        Workspace(tmp_path).open().make("s", "f", build)


def test_unwritable_workspace_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Workspace(tmp_path / "file" / "below").open()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, None])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """Its `flock` fails, or grants every lock (None), as Lustre's does without `-o flock`."""

    def flock(stream: object, operation: int) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multistill.workspace.fcntl.flock", flock)
    with pytest.raises(UsageError, match=r"without file locks .* choose another"):
        Workspace(tmp_path).open()
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_workspace_on_a_full_disk_is_continued(tmp_path: Path) -> None:
    """A file may not grow beyond 100 kB in the process: writing fails as on a full disk."""
    script = """
import resource, signal, sys
from pathlib import Path
from multistill.errors import MultistillError
from multistill.workspace import Workspace

def build(out):
    (out / "first").write_text("kept") if not (out / "first").exists() else None
    try:
        (out / "second").write_bytes(bytes(200_000))
    except OSError as error:  # EFBIG here, ENOSPC there
        raise OSError(28, "No space left on device") from error
    return {}

if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Workspace(sys.argv[1]).open().make("s", "f", build)
except MultistillError as error:
    print(error)
"""

    def run(how: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), how],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert "is full; free some space and run the same command again" in run("full")
    workspace = Workspace(tmp_path)
    assert workspace.find("s", "f") is None
    assert (workspace.partial("s", "f") / "first").read_text() == "kept"
    assert run("free") == ""
    artifact = workspace.find("s", "f")
    assert artifact is not None
    assert (artifact.path / "second").stat().st_size == 200_000


def test_object_store_is_a_usage_error() -> None:
    with pytest.raises(
        UsageError, match=r"an object store lacks; use a folder .*JuiceFS.*aws s3 sync"
    ):
        Workspace("s3://bucket/x")


def test_damaged_done_marker_is_an_error_with_its_fix(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "f"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text("{")
    with pytest.raises(MultistillError, match="remove the folder"):
        Workspace(tmp_path).find("s", "f")


def test_write_atomic_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_atomic(target, '{"a": 1}')
    write_atomic(target, '{"a": 2}')
    assert read_json(target) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("concurrent", [False, True])
def test_atomic_path_publishes_a_file_or_a_folder_only_on_success(
    tmp_path: Path, concurrent: bool
) -> None:
    target = tmp_path / "below" / "x"
    with atomic_path(target, concurrent=concurrent) as temporary:
        temporary.write_text("old")
        assert not target.exists()
    with (
        pytest.raises(RuntimeError),
        atomic_path(target, concurrent=concurrent) as temporary,
    ):
        temporary.mkdir()
        (temporary / "part").write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with atomic_path(target.with_name("folder"), concurrent=concurrent) as temporary:
        temporary.mkdir()
    assert sorted(path.name for path in target.parent.iterdir()) == ["folder", "x"]


def test_atomic_path_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    for leftover in (".x.partial", ".y.partial/part"):
        (tmp_path / leftover).parent.mkdir(exist_ok=True)
        (tmp_path / leftover).write_text("half")
    for name in ("x", "y"):
        with atomic_path(tmp_path / name) as temporary:
            assert not temporary.exists()
            temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_concurrent_writers_of_one_path_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with atomic_path(target, concurrent=True) as slow:
        slow.write_text("slow")
        with atomic_path(target, concurrent=True) as fast:
            fast.write_text("fast")
        assert target.read_text() == "fast"
    assert target.read_text() == "slow"


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["", ".yaml", "-0123.yaml"]))
@example("감" * 85, "감" * 84 + "정", ".yaml")
@example("a" * 300, "a" * 301, "")
def test_a_file_name_fits_and_different_names_stay_different(
    name: str, other: str, suffix: str
) -> None:
    made = file_name(name, suffix)
    assert len(made.encode()) <= MAX_NAME_BYTES
    assert made.endswith(suffix)
    assert (made == file_name(other, suffix)) == (name == other)
    if len((name + suffix).encode()) <= MAX_NAME_BYTES:
        assert made == name + suffix


@pytest.mark.parametrize("name", ["감" * 150, "a" * 255, "a" * 199 + "감"])
def test_files_folders_and_locks_of_long_names_can_be_made(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / file_name(name, "-0123456789abcdef.yaml"), "x")
    workspace = Workspace(tmp_path / "ws")
    kind = f"reports/{file_name(name)}"
    artifact = workspace.make(kind, "0" * 16, lambda folder: {})
    assert artifact.path.is_dir()
    with atomic_path(artifact.path.parent / "latest", concurrent=True) as temporary:
        temporary.symlink_to(artifact.path.name)
