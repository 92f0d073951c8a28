"""Starting a local Ray, connecting to a cluster, waiting for resources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multistill import cluster
from multistill.config import ResourcesConfig
from multistill.errors import MultistillError

LOCAL_RAY = """
import os, sys
from multistill import cluster
from multistill.config import ResourcesConfig
assert "ray" not in sys.modules and "torch" not in sys.modules
with cluster.start(ResourcesConfig(num_cpus=3, object_store_mb=100)) as available:
    import ray
    print("cpus", available["CPU"])
    print("mode", os.environ["RAY_AUTH_MODE"])
    print("same", ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote()))
print("left", ray.is_initialized())
"""


@pytest.mark.ray
def test_a_local_ray_starts_with_authentication_and_is_shut_down(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"}
    }
    environment["HOME"] = str(tmp_path)  # Ray writes its token there
    result = subprocess.run(
        [sys.executable, "-c", LOCAL_RAY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    expected = "cpus 3.0 mode token same token left False"
    assert result.stdout.split() == expected.split()
    assert result.stderr == ""


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
