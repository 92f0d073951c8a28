"""Starting a local Ray, connecting to a cluster, waiting for resources."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from multistill import cluster
from multistill.cluster.session import KEPT_MEMORY, _init, forwarded
from multistill.config import ResourcesConfig
from multistill.errors import MultistillError

LOCAL_RAY = """
import os, sys
from pathlib import Path
from multistill import cluster
from multistill.cluster.scratch import max_scratch_bytes
from multistill.config import ResourcesConfig
# Here, since the sockets' names hold the number of this process.
folder = Path(sys.argv[1], "a" * (max_scratch_bytes() - len(sys.argv[1]) - 1))
folder.mkdir()
os.environ["TMPDIR"] = str(folder)
assert "ray" not in sys.modules and "torch" not in sys.modules
with cluster.start(ResourcesConfig(num_cpus=3, object_store_mb=100)) as available:
    import ray
    print("cpus", available["CPU"])
    print("mode", os.environ["RAY_AUTH_MODE"])
    names = ["RAY_AUTH_MODE", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "MULTISTILL_THREAD_LIMIT"]
    print("same", *ray.get(ray.remote(lambda: [os.environ[name] for name in names]).remote()))
print("left", ray.is_initialized())
"""


@pytest.mark.ray
def test_a_local_ray_starts_with_authentication_and_is_shut_down(tmp_path: Path) -> None:
    """In the longest folder that is accepted."""
    removed = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment["OMP_NUM_THREADS"] = "3"
    environment["HOME"] = str(tmp_path)  # Ray writes its token there
    short = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        result = subprocess.run(
            [sys.executable, "-c", LOCAL_RAY, short],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stderr
        expected = "cpus 3.0 mode token same token PASSIVE 0 3 left False"
        assert result.stdout.split() == expected.split()
        assert result.stderr == ""
        [folder] = short.iterdir()
        assert (folder / "ray").is_dir()
    finally:
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.ray
def test_an_existing_connection_is_reused_and_left_open(ray_session: None) -> None:
    import ray

    with cluster.start(ResourcesConfig(num_cpus=64)) as available:
        assert available["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_resources_that_do_not_become_available_are_named(ray_session: None) -> None:
    messages: list[str] = []
    resources = ResourcesConfig(wait_for={"CPU": 4, "GPU": 2}, wait_minutes=0.05)
    with (
        pytest.raises(MultistillError, match=r"did not get 2 GPU \(has 0\) within 0.05 minutes"),
        cluster.start(resources, log=messages.append),
    ):
        raise AssertionError("the block must not be entered")
    assert messages == ["waiting for the cluster to get 2 GPU (has 0)"]
    with cluster.start(ResourcesConfig(wait_for={"CPU": 4}), log=messages.append) as available:
        assert available["CPU"] == 4
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "0"}),
        ({"OMP_NUM_THREADS": "2"}, {"MULTISTILL_THREAD_LIMIT": "2"}),
    ],
)
def test_workers_of_a_cluster_wait_passively_and_know_the_limit(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    variables = forwarded()
    assert expected.items() <= variables.items()
    assert ("MULTISTILL_THREAD_LIMIT" in variables) is ("OMP_NUM_THREADS" in environment)


def test_the_threads_that_ray_sets_in_a_submitted_job_are_no_limit_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "MULTISTILL_THREAD_LIMIT" not in forwarded()


def page_faults(environment: dict[str, str]) -> int:
    """Of twenty times 16 MB that are written and freed, as a training step does."""
    code = (
        "import resource, numpy\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "warm = [numpy.ones(2**21) for _ in range(2)]; del warm\n"
        "before = faults()\n"
        "for _ in range(20): numpy.ones(2**21)\n"
        "print(faults() - before)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in KEPT_MEMORY} | environment
    return int(subprocess.check_output([sys.executable, "-c", code], env=environment))


def test_workers_keep_freed_memory_for_the_next_step() -> None:
    assert KEPT_MEMORY.items() <= forwarded().items()
    assert 20 * page_faults(KEPT_MEMORY) < page_faults({})


def test_the_address_of_a_dashboard_is_refused() -> None:
    code = (
        "from multistill import cluster\n"
        "from multistill.config import ResourcesConfig\n"
        "with cluster.start(ResourcesConfig(address='http://127.0.0.1:8265')): pass"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "multistill submit" in result.stderr.splitlines()[-1]


def test_an_address_without_a_cluster_is_an_error() -> None:
    code = (
        "from multistill import cluster\n"
        "from multistill.config import ResourcesConfig\n"
        "with cluster.start(ResourcesConfig(address='127.0.0.1:1')): pass"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    last_line = result.stderr.strip().splitlines()[-1]
    assert MultistillError.__name__ in last_line
    assert "cannot connect to the Ray cluster at `127.0.0.1:1`" in last_line


def test_sigterm_stays_with_the_run_when_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` installs a handler that exits: the run would end as failed, and unsaved."""
    import ray

    def init(**options: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def handler(*_: object) -> None:
        raise AssertionError("not called")

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        _init(None, {})
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
