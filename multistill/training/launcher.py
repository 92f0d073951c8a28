"""Trains tasks on the cluster with Ray Train.

Starting a worker group costs many seconds, an epoch of a small student less than one. So
tasks that ask for the same resources share one group: it has as many lanes as the cluster
has room for, each lane trains its tasks one after another, and a task with W workers is
data-parallel over the W ranks of its lane.

Ray Train starts the workers, joins them into a process group, watches them and starts the
group again when one dies. Checkpoints are ours (`multistill.training.checkpoint`): checked by
digest, whole or absent, and under a folder that the job's fingerprint names, so that an
edited job can never continue old weights.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from multistill.cluster.nodes import alive_nodes
from multistill.config import TrainConfig
from multistill.hardware import Resources, cores, gpus_or_default
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training.capacity import lanes, require
from multistill.training.events import EventListener
from multistill.training.export import is_finished
from multistill.training.task import TrainingTask
from multistill.training.worker import run_lane

CONTROLLER_FAILURES = 3
"""Ray would start a controller or a group that cannot start again for ever."""

COLLECTIVE_TIMEOUT_S = 900

MOST_SPARE_THREADS = 4
"""Small heads gain nothing from more; `cpus_per_worker` gives more where they do."""

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def train(
    tasks: Sequence[TrainingTask],
    out: Path,
    logger: RunLogger = NullLogger(),  # noqa: B008 - stateless
    *,
    at_once: int = 1,
) -> list[dict[str, Any]]:
    """Train all tasks; continue those that an earlier call left unfinished.

    Each result lies in `out/<name>`: model.safetensors, config.json, history.json.

    Args:
        tasks: with unique names.
        out: on storage that every node sees, named by a fingerprint of what is trained.
        logger: gets a child of kind `model` per task, with metrics every epoch.
        at_once: calls like this one at a time, this one included; they share the cores.
    Returns:
        per task `name`, `folder`, `record_id`, and the summary of its config.json.
    Raises:
        MultistillError: a request that the cluster can never meet (within seconds), bad
            data, or workers that kept dying. Finished tasks are kept.
    """
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names), "tasks share a name"
    out.mkdir(parents=True, exist_ok=True)
    nodes = alive_nodes()
    groups: dict[tuple[int, tuple[tuple[str, float], ...]], list[TrainingTask]] = {}
    for task in tasks:
        config = task.train
        need = worker_resources(config, nodes)
        require(task.name, config.workers, need, nodes)
        groups.setdefault((config.workers, tuple(need.items())), []).append(task)
    listener = EventListener(tasks, out, logger)
    try:
        for (workers, each), members in groups.items():
            missing = [task for task in members if not is_finished(out / task.name)]
            if missing:
                _run_group(missing, workers, dict(each), nodes, out, listener, at_once)
    except KeyboardInterrupt:
        listener.close("KILLED")
        raise
    return listener.results()


def worker_resources(config: TrainConfig, nodes: Sequence[Resources]) -> dict[str, float]:
    """What one worker holds. Without a wish: a whole GPU where the cluster has any."""
    gpus = gpus_or_default(config.gpus_per_worker, nodes)
    need = {"CPU": float(config.cpus_per_worker)}
    return {**need, "GPU": gpus} if gpus else need


def on_one_machine(cores: int, count: int, workers: int) -> tuple[int, int]:
    """Lanes, of at most `count`, and threads of each worker where there is one node.

    A local Ray may promise more CPUs than there are cores, and cores that no worker holds
    would idle.
    """
    count = max(1, min(count, cores // workers))
    return count, max(1, min(MOST_SPARE_THREADS, cores // (count * workers)))


def _run_group(
    tasks: Sequence[TrainingTask],
    workers: int,
    need: dict[str, float],
    nodes: Sequence[Resources],
    out: Path,
    listener: EventListener,
    at_once: int,
) -> None:
    count = lanes(len(tasks), workers, need, nodes, ray.available_resources())
    threads = max(1, int(need["CPU"]))
    if len(nodes) == 1:
        count, spare = on_one_machine(cores() // at_once, count, workers)
        threads = max(threads, spare)
    attempts = max(task.train.max_failures for task in tasks)
    storage = out / ".ray-train"
    # Beside the driver that reads it: on a worker's node it would die with that node, and
    # every later attempt with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        run_lane,
        train_loop_config={
            "tasks": list(tasks),
            "out": str(out),
            "workers": workers,
            "lanes": count,
            "threads": threads,
            "events": events,
        },
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=count * workers,
            use_gpu="GPU" in need,
            resources_per_worker=need,
        ),
        run_config=RunConfig(
            # A new name every time: Ray's own resume would read a snapshot that it does not
            # write atomically, and we keep no checkpoint with it.
            name=f"{tasks[0].name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=attempts, controller_failure_limit=CONTROLLER_FAILURES
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        environment = dict(_ENVIRONMENT)
        if len(nodes) == 1:  # nobody to warn of: where the node goes, the driver goes
            environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        with listener.listening(events), _environment(environment), _interruptible():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        listener.fail(error, attempts)
    finally:
        events.shutdown(force=True)
        shutil.rmtree(storage, ignore_errors=True)
    listener.check(tasks)


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Settings that Ray Train reads from the driver's environment; the user's own win."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the workers and then this process as it would without Ray Train.

    Ray Train leaves its own handler installed, and exits with 0 when interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)
