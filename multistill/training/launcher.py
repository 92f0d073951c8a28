"""Trains tasks on the cluster with Ray Train.

Starting a worker group takes many seconds, an epoch of a small student less than one. So tasks
with equal resource requests share one worker group. It is divided into process groups of W
ranks, as many as the cluster has room for; each process group trains its tasks one after
another, data-parallel over its ranks.

Ray Train starts the workers, sets up `torch.distributed`, monitors the workers and restarts the
worker group when one of them dies. It does not manage checkpoints: those of
`multistill.training.checkpoint` are written atomically and verified by checksum, in a folder
that is named by the job's fingerprint, so that an edited job never resumes old weights.

Where a node is drained, or this process gets SIGTERM, all workers save after their step and return
(`multistill.cluster.handback`). In the first case a new worker group goes on from there, on other
nodes. Ray Train's own watcher of preempted nodes is off: it waits for the node to die, and its
barrier is for workers that all train the same model.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from multistill.cluster.handback import Request, on_sigterm
from multistill.cluster.nodes import alive_nodes
from multistill.cluster.waiting import Waiting
from multistill.config import TrainConfig
from multistill.hardware import Resources, cores, gpus_or_default, limit_threads
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training.capacity import concurrent_tasks, require, single_node_layout
from multistill.training.events import EventListener
from multistill.training.task import TrainingTask
from multistill.training.worker import train_loop_per_worker
from multistill.workspace import file_name

CONTROLLER_FAILURES = 3
"""By default, Ray restarts a controller or worker group that cannot start without limit."""

COLLECTIVE_TIMEOUT_S = 900

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def train(
    tasks: Sequence[TrainingTask],
    out: Path,
    logger: RunLogger = NullLogger(),  # noqa: B008 - stateless
    *,
    concurrent_runs: int = 1,
    request: Request | None = None,
) -> list[dict[str, Any]]:
    """Train all tasks; resume those that an earlier call left unfinished.

    Each result is in `out/<name>`: model.safetensors, config.json, history.json.

    Args:
        tasks: with unique names.
        out: on storage that every node can access, named by a fingerprint of the trainings.
        logger: gets a child of kind `model` per task, with metrics every epoch.
        concurrent_runs: number of concurrent calls including this one; they share the cores.
        request: by which another process, or thread, makes the workers save and return.

    Returns:
        for each task `name`, `folder`, `record_id`, and the summary in its config.json.

    Raises:
        MultistillError: a resource request that the cluster can never fulfil (raised within
            seconds), bad data, or workers that kept dying. Finished tasks are kept.
        KeyboardInterrupt: Ctrl-C; after SIGTERM or `request`, once the workers have saved.
    """
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names), "tasks share a name"
    out.mkdir(parents=True, exist_ok=True)
    nodes = alive_nodes()
    by_resources: dict[tuple[int, tuple[tuple[str, float], ...]], list[TrainingTask]] = {}
    for task in tasks:
        config = task.train
        need = worker_resources(config, nodes)
        require(task.name, config.workers, need, nodes)
        by_resources.setdefault((config.workers, tuple(need.items())), []).append(task)
    listener = EventListener(tasks, out, logger)
    request = request or Request()
    ending = threading.Event()

    def end() -> None:
        ending.set()
        logger.info("stopping: trainings save after their step; another SIGTERM stops at once")
        if not listener.working:  # there is nobody to ask, and nothing to save
            os.kill(os.getpid(), signal.SIGTERM)
            return
        request.send("driver")

    try:
        with on_sigterm(end):
            for (workers, need_items), members in by_resources.items():
                while unfinished := listener.unfinished(members):
                    _run_worker_group(
                        *(unfinished, workers, dict(need_items), alive_nodes() or nodes),
                        *(out, listener, concurrent_runs, request),
                    )
                    match request.reason():
                        case "driver":
                            raise KeyboardInterrupt
                        case "node":
                            request.clear()
                            logger.info("a node is about to go: its trainings move to others")
                        case None:
                            break
                listener.check_results(members)
        if ending.is_set():  # after the last worker has asked
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        listener.close("KILLED")
        raise
    finally:
        request.clear()
    return listener.results()


def worker_resources(config: TrainConfig, nodes: Sequence[Resources]) -> dict[str, float]:
    """Resources of one worker: as requested; by default a whole GPU if the cluster has any."""
    gpus = gpus_or_default(config.gpus_per_worker, nodes)
    need = {"CPU": float(config.cpus_per_worker)}
    return {**need, "GPU": gpus} if gpus else need


def _run_worker_group(
    tasks: Sequence[TrainingTask],
    workers: int,
    need: dict[str, float],
    nodes: Sequence[Resources],
    out: Path,
    listener: EventListener,
    concurrent_runs: int,
    request: Request,
) -> None:
    groups = concurrent_tasks(len(tasks), workers, need, nodes, ray.available_resources())
    threads = max(1, int(need["CPU"]))
    if len(nodes) == 1:
        groups, available_threads = single_node_layout(cores() // concurrent_runs, groups, workers)
        threads = max(threads, available_threads)
    threads = limit_threads(threads)
    max_failures = max(task.train.max_failures for task in tasks)
    storage = out / ".ray-train"
    # On the driver's node, since the driver reads it: on a worker's node the queue would be lost
    # with that node, and every restart would fail.
    driver_node = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": driver_node})
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "tasks": list(tasks),
            "out": str(out),
            "workers": workers,
            "groups": groups,
            "threads": threads,
            "events": events,
            "request": request.name,
        },
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=groups * workers,
            use_gpu="GPU" in need,
            resources_per_worker=need,
        ),
        run_config=RunConfig(
            # A unique name: with a known one, Ray would resume from its own snapshot, which is
            # not written atomically and holds no checkpoint of ours.
            name=file_name(tasks[0].name, f"-{uuid.uuid4().hex[:8]}"),
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[_LostWorkers(events)],
        ),
    )
    waiting = Waiting(listener.logger.info, "the training", "training", workers, need)
    try:
        with listener.listening(events, waiting), _environment(_ENVIRONMENT), _interruptible():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        listener.raise_error(error, max_failures)
    finally:
        events.shutdown(force=True)
        shutil.rmtree(storage, ignore_errors=True)


class _LostWorkers(UserCallback):
    """Tells the driver that a worker has failed or died; Ray Train starts the group again."""

    def __init__(self, events: Queue) -> None:
        self._events = events

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with suppress(Exception):  # the driver is gone
            self._events.put({"kind": "lost"})


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray Train reads in the driver, unless the user has set them."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C stop the workers and raise KeyboardInterrupt, as without Ray Train.

    Ray Train exits with status 0 on SIGINT and does not restore the previous handler.
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
