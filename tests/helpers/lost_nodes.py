"""Work on a cluster whose nodes are announced to go, go, die and join: what happens to it.

python lost_nodes.py FOLDER      reads what is to be done there, and writes result.json

1. Encoding loses an actor, then a node with another one.
2. A training of two workers loses the node of one of them, and another node joins.
3. A training's driver gets SIGTERM, is started again, and then the node that works is drained, as
   a cloud's notice does it, and removed.
4. The only node of a search is drained and replaced in its first trial, and dies and is replaced
   in its second.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster

from helpers.features_killed import CONFIG, actors, descendants, markers, wait_for
from helpers.recording_logger import RecordingLogger
from helpers.search_case import choice
from multistill.config import FeaturesConfig, SearchConfig
from multistill.features.encode import encode
from multistill.search.study import search
from multistill.training.launcher import train
from multistill.training.task import TrainingTask

MEMORY = {"object_store_memory": 80_000_000}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    # A node that has died refuses each check at once, and one on a busy machine has time to answer.
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 30_000,
}
WIDTHS = [16, 24]


class Nodes:
    """A head node that runs nothing, and workers with one CPU each."""

    def __init__(self, count: int) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, **MEMORY}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**head, "_system_config": QUICK}
        )
        self.nodes: list[Any] = []
        # The kernel kills a raylet when the thread that started it ends: this one does not.
        self.thread = ThreadPoolExecutor(1)
        for _ in range(count):
            self.join(wait=False)
        self.cluster.wait_for_nodes()

    def join(self, wait: bool = True) -> None:
        # It would set a handler, which threads cannot, and which would replace that of the run.
        with patch("ray._private.utils.set_sigterm_handler"):
            self.nodes.append(self.cluster.add_node(wait=wait, num_cpus=1, **MEMORY))

    def of(self, pid: int) -> Any:
        """The node that a process runs on."""
        return next(node for node in self.nodes if pid in descendants(_raylet(node)))

    def busy(self, name: str) -> Any:
        """The node with a process whose title holds `name`."""
        titles = {node: descendants(_raylet(node)).values() for node in self.nodes}
        return next(node for node, each in titles.items() if any(name in title for title in each))

    def drain(self, node: Any) -> None:
        """What a cloud's notice makes Ray's autoscaler do."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        accepted, message = ray._raylet.GcsClient(address=self.cluster.address).drain_node(
            node.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the test takes it away",
            int(time.time() * 1000) + 60_000,
        )
        assert accepted, message

    def remove(self, node: Any) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def encoding(nodes: Nodes, manifest: Path, out: Path) -> list[str]:
    """Encode while an actor dies, and then a node that has one; returns what died."""
    died: list[str] = []

    def kill_one_by_one() -> None:
        wait_for(3, out)
        os.kill(
            next(actor for node in nodes.nodes for actor in actors(_raylet(node))), signal.SIGKILL
        )
        died.append("actor")
        wait_for(markers(out) + 5, out)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # the actor that died is still being started again
            for node in nodes.nodes:
                if actors(_raylet(node)):
                    nodes.remove(node)
                    died.append("node")
                    return
            time.sleep(0.05)

    killing = threading.Thread(target=kill_one_by_one, daemon=True)
    killing.start()
    encode(manifest, FeaturesConfig.model_validate(CONFIG), out)
    killing.join(60)
    return died


def losing_a_node(nodes: Nodes, task: TrainingTask, out: Path) -> list[str]:
    """Train with two workers while the node of one dies; returns the first worker of each start."""
    changes: list[Future[None]] = []
    workers: list[str] = []

    def on_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
        if method == "tags":
            workers.append(recorded["worker"])
        if method == "metrics" and recorded[0] == 2 and not changes:
            nodes.remove(nodes.of(int(workers[0].split(":")[1])))
            changes.append(nodes.thread.submit(nodes.join))

    train([task], out, RecordingLogger(on_event=on_event))
    for change in changes:
        change.result(120)
    return workers


def interrupted(work: Callable[[RecordingLogger], object], when: Callable[..., bool]) -> list[str]:
    """Send SIGTERM to this process once `when` is true; returns what the run said."""
    messages: list[str] = []
    sent = threading.Event()

    def on_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
        if method == "info":
            messages.append(recorded)
            print(recorded, flush=True)
        if when(method, recorded) and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        work(RecordingLogger(on_event=on_event))
    except KeyboardInterrupt:
        return messages
    raise AssertionError(f"SIGTERM did not end it: {messages}")


def an_epoch_ended(method: str, recorded: Any) -> bool:
    return method == "metrics" and recorded[0] is not None


def training(nodes: Nodes, task: TrainingTask, out: Path) -> dict[str, Any]:
    begun = interrupted(lambda logger: train([task], out, logger), an_epoch_ended)
    messages: list[str] = []
    drained: list[Any] = []
    workers: list[int] = []

    def on_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
        if method == "info":
            messages.append(recorded)
            print(recorded, flush=True)
        if method == "tags":
            workers.append(int(recorded["worker"].split(":")[1]))
            if drained:
                nodes.remove(drained[0])
        if an_epoch_ended(method, recorded) and not drained:
            drained.append(nodes.of(workers[0]))
            nodes.drain(drained[0])

    train([task], out, RecordingLogger(on_event=on_event))
    return {"interrupted": begun, "moved": messages, "workers": len(workers)}


def searching(nodes: Nodes, task: TrainingTask, out: Path) -> dict[str, Any]:
    config = SearchConfig(
        trials=len(WIDTHS),
        concurrent=1,
        sampler="grid",
        space={"model.width": choice(*WIDTHS)},
        grace_epochs=task.train.epochs,
    )
    messages: list[str] = []
    changes: list[Future[None]] = []

    def on_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
        if method == "info":
            messages.append(recorded)
            print(recorded, flush=True)
        begun = an_epoch_ended(method, recorded) and len(changes) < len(WIDTHS)
        if begun and logger.name == f"trial {len(changes)}":
            changes.append(nodes.thread.submit([preempted, killed][len(changes)]))

    def preempted() -> None:
        node = nodes.busy("Trainable")
        nodes.drain(node)
        nodes.join()
        deadline = time.monotonic() + 120
        while not any("continues from" in line for line in messages):
            assert time.monotonic() < deadline, messages
            time.sleep(0.1)
        nodes.remove(node)

    def killed() -> None:
        nodes.remove(nodes.busy("Trainable"))
        nodes.join()

    logger = RecordingLogger(on_event=on_event)
    summary = search(task, config, 1, out, logger, "0123")
    for change in changes:
        change.result(120)
    losses = {
        child.logged_params["model.width"]: [
            (step, row["train_loss"]) for step, row in child.metric_rows if "train_loss" in row
        ]
        for child in logger.children.values()
    }
    return {"messages": messages, "counts": summary["counts"], "losses": losses}


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)  # for the log of a run that hangs
    folder = Path(sys.argv[1])

    def task(name: str) -> TrainingTask:
        return TrainingTask.from_dict(json.loads((folder / f"{name}.json").read_text()))

    nodes = Nodes(3)
    ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="error")
    result: dict[str, Any] = {}
    work: dict[str, Callable[[], Any]] = {
        "encoding": lambda: encoding(nodes, folder / "manifest.parquet", folder / "store"),
        "two workers": lambda: losing_a_node(nodes, task("two workers"), folder / "two workers"),
        "training": lambda: training(nodes, task("training"), folder / "training"),
        "search": lambda: searching(nodes, task("search"), folder / "search"),
    }
    try:
        for name, part in work.items():
            started = time.monotonic()
            result[name] = part()
            print(name, "took", round(time.monotonic() - started, 1), flush=True)
    finally:
        (folder / "result.json").write_text(json.dumps(result))
        ray.shutdown()
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
