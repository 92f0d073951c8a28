"""Starting, joining and judging a Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multistill import cluster
from multistill.config import ResourcesConfig
from multistill.errors import MultistillError

ALONE = """
import os, sys
from multistill import cluster
from multistill.config import ResourcesConfig
assert "ray" not in sys.modules and "torch" not in sys.modules
with cluster.start(ResourcesConfig(num_cpus=3, object_store_mb=100)) as found:
    import ray
    print("cpus", found["CPU"])
    print("mode", os.environ["RAY_AUTH_MODE"])
    print("same", ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote()))
print("left", ray.is_initialized())
"""


@pytest.mark.ray
def test_a_private_ray_starts_with_authentication_and_ends(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"}
    }
    environment["HOME"] = str(tmp_path)  # Ray writes its token there
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpus", "3.0", "mode", "token", "same", "token", "left", "False"]
    assert done.stderr == ""


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left(ray_session: None) -> None:
    import ray

    with cluster.start(ResourcesConfig(num_cpus=64)) as found:
        assert found["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_what_a_cluster_does_not_grow_to_is_named(ray_session: None) -> None:
    said: list[str] = []
    resources = ResourcesConfig(wait_for={"CPU": 4, "GPU": 2}, wait_minutes=0.05)
    with (
        pytest.raises(MultistillError, match=r"did not get 2 GPU \(has 0\) within 0.05 minutes"),
        cluster.start(resources, log=said.append),
    ):
        raise AssertionError("the block must not be entered")
    assert said == ["waiting for the cluster to get 2 GPU (has 0)"]
    with cluster.start(ResourcesConfig(wait_for={"CPU": 4}), log=said.append) as found:
        assert found["CPU"] == 4
    assert len(said) == 1


def test_a_dashboards_address_is_no_cluster_to_join() -> None:
    code = (
        "from multistill import cluster\n"
        "from multistill.config import ResourcesConfig\n"
        "with cluster.start(ResourcesConfig(address='http://127.0.0.1:8265')): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "multistill submit" in done.stderr.splitlines()[-1]


def test_an_address_without_a_cluster_is_a_sentence() -> None:
    code = (
        "from multistill import cluster\n"
        "from multistill.config import ResourcesConfig\n"
        "with cluster.start(ResourcesConfig(address='127.0.0.1:1')): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert MultistillError.__name__ in last
    assert "the Ray cluster at `127.0.0.1:1` cannot be joined" in last
