"""What each worker of a Ray Train group runs: the tasks of its lane, one after another."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch

from multistill.errors import MultistillError
from multistill.training.checkpoint import newest_epoch
from multistill.training.data import TrainingData
from multistill.training.distributed import ProcessGroup, torch_process_group
from multistill.training.export import discard_state, export, is_finished, state_folder
from multistill.training.loop import fit
from multistill.training.task import TrainingTask

STOP = "stop"
"""A file of this name in a training's folder ends it after the epoch in hand, unfinished."""


class Events(Protocol):
    """Where a worker tells the driver what happened; a Ray queue."""

    def put(self, item: dict[str, Any]) -> None: ...


def run_lane(config: dict[str, Any]) -> None:
    """Train the tasks of this worker's lane.

    Args:
        config: `tasks`, `out`, `workers` (of each task), `lanes`, `threads`, `events`.
    """
    rank = ray.train.get_context().get_world_rank()
    workers, lanes = int(config["workers"]), int(config["lanes"])
    lane, place = divmod(rank, workers)
    torch.set_num_threads(int(config["threads"]))
    world = _lane_world(lane, place, workers, lanes)
    device = ray.train.torch.get_device()
    tasks = config["tasks"]
    for task in tasks[lane::lanes]:
        folder = Path(config["out"]) / task.name
        if not _train(task, folder, world, device, config["events"]):
            return


def _lane_world(lane: int, place: int, workers: int, lanes: int) -> ProcessGroup:
    if workers == 1:
        return ProcessGroup()
    if lanes == 1:
        return torch_process_group(None, workers, place)
    # Every rank takes part in making every group, in one order.
    groups = [
        torch.distributed.new_group(list(range(start, start + workers)))
        for start in range(0, lanes * workers, workers)
    ]
    return torch_process_group(groups[lane], workers, place)


def _train(
    task: TrainingTask, folder: Path, world: ProcessGroup, device: torch.device, events: Events
) -> bool:
    """One task, from its checkpoint to its exported model.

    Errors that the user can mend are told to the driver and end this task only: a new
    attempt would meet them again. All others are raised, for Ray Train to try again.

    Returns:
        whether this lane can train another task.
    """
    done = torch.tensor([float(world.is_main and is_finished(folder))], device=device)
    if world.broadcast(done).item():
        return True
    try:
        data = TrainingData.open(task)
        if world.is_main:
            epoch, problems = newest_epoch(state_folder(folder))
            events.put(
                {
                    "task": task.name,
                    "kind": "started",
                    "epoch": epoch,
                    "problems": problems,
                    "train_rows": len(data.train),
                    "valid_rows": len(data.valid),
                    "missing": data.missing,
                    "worker": f"{os.uname().nodename}:{os.getpid()}",
                }
            )
        for report in fit(
            task, world=world, state_dir=state_folder(folder), device=device, data=data
        ):
            if world.is_main:
                events.put(
                    {
                        "task": task.name,
                        "kind": "epoch",
                        "epoch": report.epoch,
                        "metrics": report.metrics,
                        "best": report.best,
                    }
                )
            asked = torch.tensor([float(world.is_main and (folder / STOP).exists())], device=device)
            if world.broadcast(asked).item():
                return True
        if world.is_main:
            summary = export(task, data, state_folder(folder), folder)
            discard_state(folder)
            events.put({"task": task.name, "kind": "finished", "summary": summary})
        return True
    except MultistillError as error:
        return _give_up(task, str(error), world, events)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _give_up(
            task,
            f"the disk that holds {folder} is full; free some space and run the same command "
            "again: finished epochs are kept",
            world,
            events,
        )


def _give_up(task: TrainingTask, reason: str, world: ProcessGroup, events: Events) -> bool:
    events.put({"task": task.name, "kind": "failed", "reason": reason})
    if world.size == 1:
        return True
    # Where only this rank failed, the others wait for it in a collective: break it.
    torch.distributed.destroy_process_group()
    return False
