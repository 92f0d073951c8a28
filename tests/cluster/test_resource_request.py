"""The request for nodes ends with the run that made it, on a cluster with Ray's autoscaler."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.ray_head import Head, running_head
from helpers.servers import free_ports

from multistill.cluster import resource_request

pytestmark = pytest.mark.ray

DRIVER = """
import sys, time
from multistill import cluster
from multistill.config import ResourcesConfig
wait_for = {"slot": float(sys.argv[2])}
with cluster.start(
    ResourcesConfig(address=sys.argv[1], wait_for=wait_for, wait_minutes=4)
) as available:
    print("scaled", available["slot"], flush=True)
    sys.stdin.readline()
print("ended", flush=True)
"""

OBSERVER = """
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL as channel
from ray.experimental.internal_kv import _internal_kv_get
for line in sys.stdin:
    request = json.loads(_internal_kv_get(channel) or "[]")
    print(json.dumps([len(request), ray.cluster_resources().get("slot", 0)]), flush=True)
"""


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node without CPUs, whose autoscaler starts real worker nodes on this machine."""
    [port] = free_ports(1)
    config = {
        "cluster_name": "fake_multinode",
        "max_workers": 3,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,  # the nodes share one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "slot": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.02,
        "auth": {},
        "head_node": {},
        "worker_nodes": {},
        "file_mounts": {},
        **{
            name: []
            for name in (
                *("cluster_synced_files", "initialization_commands", "setup_commands"),
                *("head_setup_commands", "worker_setup_commands"),
                *("head_start_ray_commands", "worker_start_ray_commands"),
            )
        },
    }
    file = tmp_path_factory.mktemp("autoscaler") / "cluster.yaml"
    file.write_text(json.dumps(config))
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with running_head(0, [f"--autoscaling-config={file}"], variables, port) as head:
        yield head


class Process:
    """A Python program that talks to the cluster over its standard streams."""

    def __init__(self, code: str, head: Head, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, head.gcs, *arguments],
            env=head.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path.cwd(),
        )

    def read(self, start: str = "") -> str:
        """The next line with this start; the nodes that the autoscaler ends fill the log."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"the program ended without a line `{start}...`")

    def enter(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def state(self) -> list[float]:
        """Bundles that are requested, and the slots that the cluster has."""
        self.enter()
        state: list[float] = json.loads(self.read("["))
        return state

    def wait_until(self, expected: list[float], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while (state := self.state()) != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        assert state == expected

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def observer(autoscaled: Head) -> Iterator[Process]:
    process = Process(OBSERVER, autoscaled)
    yield process
    process.kill()


def test_the_nodes_of_a_killed_driver_are_given_back(autoscaled: Head, observer: Process) -> None:
    assert observer.state() == [0, 0]
    driver = Process(DRIVER, autoscaled, "2")
    try:
        assert driver.read("scaled") == "scaled 2.0"
        assert observer.state() == [2, 2]
    finally:
        driver.kill()
    observer.wait_until([0, 0])


def test_each_run_keeps_what_it_needs_until_it_ends(autoscaled: Head, observer: Process) -> None:
    first, second = Process(DRIVER, autoscaled, "1"), None
    try:
        assert first.read("scaled") == "scaled 1.0"
        second = Process(DRIVER, autoscaled, "2")
        assert second.read("scaled") == "scaled 2.0"
        assert observer.state()[0] == 2
        second.kill()
        observer.wait_until([1, 1])  # the first run still has its node
        first.enter()
        assert first.read("ended") == "ended"
        assert observer.state()[0] == 0
    finally:
        first.kill()
        if second:
            second.kill()
    observer.wait_until([0, 0])


def test_the_request_is_enough_for_each_run_in_single_units() -> None:
    assert resource_request.bundles_of([]) == []
    assert resource_request.bundles_of([{"GPU": 2}, {"GPU": 1, "slot": 0.5}]) == [
        {"GPU": 1.0},
        {"GPU": 1.0},
        {"slot": 1.0},
    ]
