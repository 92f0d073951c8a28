"""Runs of the features stage in which processes are killed, and helpers to find the processes.

python features_killed.py driver MANIFEST OUT     runs until it is killed from outside
python features_killed.py cluster MANIFEST OUT    starts three nodes; kills an actor, then a node
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from multistill.config import FeaturesConfig
from multistill.features.encode import encode

CONFIG = {
    "speech": {"model": "untrained-wav2vec2"},
    "dtype": "float32",
    "shard_seconds": 4.0,
    "encoders": 2,
}


def markers(out: Path) -> int:
    return len(list((out / "shards").glob("*.json")))


def wait_for(count: int, out: Path) -> None:
    deadline = time.monotonic() + 400
    while markers(out) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def descendants(root: int) -> dict[int, str]:
    """Process id -> command line of all descendants of a process (Linux)."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # Format: pid (name) state parent ...; the name can contain spaces.
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    below: dict[int, str] = {}
    level = [root]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level and pid in names]
        below.update({pid: names[pid] for pid in level})
    return below


def actors(root: int) -> list[int]:
    """Encoder actors among the descendants of a process; only these write shards."""
    return [pid for pid, command in descendants(root).items() if "EncodeShard" in command]


def kill_one_by_one(cluster: Any, nodes: list[Any], out: Path) -> None:
    wait_for(3, out)
    os.kill(actors(os.getpid())[0], signal.SIGKILL)
    print("killed an actor", markers(out), flush=True)
    wait_for(markers(out) + 10, out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the actor that was killed is still being started again
        for node in nodes:
            raylet = node.all_processes["raylet"][0].process.pid
            if actors(raylet):
                cluster.remove_node(node, allow_graceful=False)
                print("killed a node", markers(out), flush=True)
                return
        time.sleep(0.05)
    print("no node had an actor", flush=True)


def run_cluster(manifest: Path, out: Path) -> None:
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80_000_000}
    # Ray detects a lost node within five seconds, instead of fifteen by default; with less, a node
    # on a busy machine counts as lost.
    health_checks = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 10,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, **memory}
    cluster = Cluster(
        initialize_head=True, head_node_args={**head, "_system_config": health_checks}
    )
    nodes = [cluster.add_node(wait=False, num_cpus=1, **memory) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    threading.Thread(target=kill_one_by_one, args=(cluster, nodes, out), daemon=True).start()
    print(encode(manifest, FeaturesConfig.model_validate(CONFIG), out), flush=True)
    ray.shutdown()
    cluster.shutdown()


def run_driver(manifest: Path, out: Path) -> None:
    ray.init(
        address="local",  # do not connect to a cluster that runs on this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level="error",
    )
    encode(manifest, FeaturesConfig.model_validate(CONFIG), out)
    os.write(1, b"finished before it was killed\n")


if __name__ == "__main__":
    {"driver": run_driver, "cluster": run_cluster}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
