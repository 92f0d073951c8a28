"""The Ray Train worker: trains the tasks of its process group, one after another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch

from multistill.cluster.handback import Request, Watch
from multistill.errors import MultistillError
from multistill.full_disk import FullDiskError, is_full
from multistill.training.checkpoint import newest_epoch, newest_steps
from multistill.training.data import TrainingData
from multistill.training.distributed import ProcessGroup, torch_process_group
from multistill.training.export import discard_state, export, is_finished, state_folder
from multistill.training.loop import fit
from multistill.training.reports import TrainingInterrupted
from multistill.training.task import TrainingTask

STOP = "stop"
"""A file of this name in a task's folder stops its training after the current epoch. The task
remains unfinished and can be resumed."""


class EventQueue(Protocol):
    """Where workers put events for the driver's `EventListener`; a Ray queue."""

    def put(self, item: dict[str, Any]) -> None: ...


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train the tasks of this worker's process group.

    Args:
        config: `tasks`; `out`, the folder of the results; `workers`, ranks of each process group;
            `groups`, number of process groups; `threads` of each worker; `events`, the queue;
            `request`, name of the request to hand back.
    """
    world_rank = ray.train.get_context().get_world_rank()
    workers, groups = int(config["workers"]), int(config["groups"])
    group_index, rank = divmod(world_rank, workers)
    torch.set_num_threads(int(config["threads"]))
    group = _process_group(group_index, rank, workers, groups)
    device = ray.train.torch.get_device()
    tasks = config["tasks"]
    node = ray.get_runtime_context().get_node_id()
    watch = Watch(Request(config["request"]), node, forward=True)
    if world_rank == 0:
        config["events"].put({"kind": "working"})
    try:
        for task in tasks[group_index::groups]:
            folder = task.folder(Path(config["out"]))
            if not _train(task, folder, group, device, config["events"], watch):
                return
    finally:
        watch.close()


def _process_group(group_index: int, rank: int, workers: int, groups: int) -> ProcessGroup:
    if workers == 1:
        return ProcessGroup()
    if groups == 1:
        return torch_process_group(None, workers, rank)
    # `new_group` is a collective: every rank creates all groups, in the same order.
    torch_groups = [
        torch.distributed.new_group(list(range(start, start + workers)))
        for start in range(0, groups * workers, workers)
    ]
    return torch_process_group(torch_groups[group_index], workers, rank)


def _train(
    task: TrainingTask,
    folder: Path,
    group: ProcessGroup,
    device: torch.device,
    events: EventQueue,
    watch: Watch,
) -> bool:
    """Train one task from its checkpoint to the exported model.

    Errors that the user has to fix are reported to the driver and end only this task: a restart
    would fail again. All other errors are raised, so that Ray Train restarts the workers.

    Returns:
        whether this process group can train another task.
    """
    known = torch.tensor([float(watch()), float(is_finished(folder))], device=device)
    hand_back, finished = map(bool, group.broadcast(known).tolist())
    if hand_back or finished:
        return not hand_back
    try:
        data = TrainingData.open(task)
        if group.is_main:
            epoch, problems = newest_epoch(state_folder(folder))
            events.put(
                {
                    "task": task.name,
                    "kind": "started",
                    "epoch": epoch,
                    "steps": newest_steps(state_folder(folder), epoch),
                    "problems": problems,
                    "train_rows": len(data.train),
                    "valid_rows": len(data.valid),
                    "worker": f"{os.uname().nodename}:{os.getpid()}",
                }
            )
        for report in fit(
            task, group=group, state_dir=state_folder(folder), device=device, data=data, stop=watch
        ):
            if group.is_main:
                events.put(
                    {
                        "task": task.name,
                        "kind": "epoch",
                        "epoch": report.epoch,
                        "metrics": report.metrics,
                    }
                )
            stop = torch.tensor([float(group.is_main and (folder / STOP).exists())], device=device)
            if group.broadcast(stop).item():
                return True
        if group.is_main:
            summary = export(task, data, state_folder(folder), folder)
            discard_state(folder)
            events.put({"task": task.name, "kind": "finished", "summary": summary})
        return True
    except TrainingInterrupted as interrupted:
        if group.is_main:
            events.put(
                {
                    "task": task.name,
                    "kind": "interrupted",
                    "epoch": interrupted.epoch,
                    "steps": interrupted.steps,
                }
            )
        return False
    except MultistillError as error:
        return _report_failure(task, error, group, events)
    except Exception as error:
        if not is_full(error):
            raise
        return _report_failure(task, FullDiskError.of(folder, "finished epochs"), group, events)


def _report_failure(
    task: TrainingTask, error: MultistillError, group: ProcessGroup, events: EventQueue
) -> bool:
    full = isinstance(error, FullDiskError)
    events.put({"task": task.name, "kind": "failed", "reason": str(error), "full_disk": full})
    if group.size == 1:
        return True
    # If only this rank failed, the others wait for it in a collective: make that fail.
    torch.distributed.destroy_process_group()
    return False
