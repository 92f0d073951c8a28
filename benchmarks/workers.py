"""What data-parallel training gains from more workers on this machine, and where the rest goes.

    python benchmarks/workers.py [--clips 128] [--rounds 3] [--workers 1 2]

Worker processes over gloo with one thread each, on the inputs of benchmarks/training.py; the
numbers of workers alternate in every round. A row a number of workers: samples per second,
efficiency against one worker of the same round by wall time and by processor time (median of the
rounds), the parts of a step and of the epoch's checkpoint, and the largest difference of a trained
weight from those of one worker.

Efficiency by processor time is that of the longest path: in every step the worker that computed
most, then the checkpoint, which only one of them writes. Other work on the machine changes wall
time, and little else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.multiprocessing as mp
from rows import add_row
from torch import Tensor
from training import make_inputs, make_task

from multistill.training import loop
from multistill.training.checkpoint import load_checkpoint
from multistill.training.distributed import ProcessGroup, torch_process_group
from multistill.training.optimizer import NamedAdamW
from multistill.training.prefetch import Prefetcher
from multistill.training.task import TrainingTask

WALL, PROCESSOR = 0, 1
EPOCHS = 2
"""The first one is not measured."""


class Spans:
    """Seconds of wall and processor time by part, of every step and between steps."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []
        self.outside: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._step: dict[str, list[float]] | None = None

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent = self.outside if self._step is None else self._step
                spent[part][WALL] += time.perf_counter() - started[WALL]
                spent[part][PROCESSOR] += time.process_time() - started[PROCESSOR]

        return call

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        timed = self.timed("step", function)

        def call(*arguments: Any, **options: Any) -> Any:
            self._step = defaultdict(lambda: [0.0, 0.0])
            try:
                return timed(*arguments, **options)
            finally:
                self.steps.append(self._step)
                self._step = None

        return call


@contextmanager
def measured(spans: Spans) -> Iterator[None]:
    """Time the parts of the training loop."""
    parts = [
        (Prefetcher, "_read", "read"),
        (Tensor, "backward", "backward"),
        (loop._Training, "_sample_losses", "forward"),
        (NamedAdamW, "step", "optimizer"),
        (loop, "save_checkpoint", "checkpoint"),
    ]
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, spans.timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(loop, "training_step", spans.step(loop.training_step)))
        yield


def train(rank: int, size: int, task: TrainingTask, folder: Path) -> None:
    """Train as one of `size` workers; writes the spans of the epochs after the first."""
    torch.set_num_threads(1)
    group, spans = ProcessGroup(), Spans()
    if size > 1:
        address = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", address, rank=rank, world_size=size)
        group = torch_process_group(None, size, rank)
        assert group.all_reduce is not None
        summed = spans.timed("sum", group.all_reduce)
        wait = spans.timed("wait", torch.distributed.barrier)

        def all_reduce(tensor: Tensor) -> None:
            wait()  # told apart from the sum: workers that are behind
            summed(tensor)

        group = replace(group, all_reduce=all_reduce)
    with measured(spans):
        epochs = loop.fit(task, state_dir=folder / "state", device="cpu", group=group)
        next(epochs)
        spans.steps.clear()
        spans.outside.clear()
        started = time.perf_counter()
        rest = sum(1 for _ in epochs)
        wall = time.perf_counter() - started
    assert rest == EPOCHS - 1
    found = {"wall": wall, "steps": spans.steps, "outside": spans.outside}
    (folder / f"spans-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        torch.distributed.destroy_process_group()


def one_round(size: int, task: TrainingTask, folder: Path) -> dict[str, Any]:
    """Train with this many workers. Seconds are of an epoch, those of `parts` of a step."""
    folder.mkdir()
    mp.spawn(train, (size, task, folder), nprocs=size)
    ranks = [json.loads((folder / f"spans-{rank}.json").read_text()) for rank in range(size)]
    steps = len(ranks[0]["steps"])
    longest = sum(
        max(rank["steps"][number]["step"][PROCESSOR] for rank in ranks) for number in range(steps)
    )
    checkpoint = ranks[0]["outside"]["checkpoint"]
    parts = {
        part: [
            statistics.fmean(step[part][kind] for rank in ranks for step in rank["steps"])
            for kind in (WALL, PROCESSOR)
        ]
        for part in ranks[0]["steps"][0]
    }
    return {
        "wall": max(rank["wall"] for rank in ranks),
        "processor": longest + checkpoint[PROCESSOR],
        "processor_of_steps": longest,
        "parts": parts,
        "checkpoint": checkpoint,
        "weights": load_checkpoint(folder / "state", EPOCHS).model,
    }


def row(size: int, rounds: list[dict[int, dict[str, Any]]], clips: int) -> dict[str, Any]:
    def median(figure: Callable[[dict[int, dict[str, Any]]], float]) -> float:
        return round(statistics.median(map(figure, rounds)), 4)

    def efficiency(key: str) -> float:
        return median(lambda each: each[1][key] / (size * each[size][key]))

    largest = max(
        float((each[size]["weights"][name] - tensor).abs().max())
        for each in rounds
        for name, tensor in each[1]["weights"].items()
    )
    return {
        "what": "workers",
        "workers": size,
        "samples_per_s": median(lambda each: clips / each[size]["wall"]),
        "efficiency": efficiency("wall"),
        "efficiency_by_processor_time": efficiency("processor"),
        "efficiency_by_processor_time_of_steps": efficiency("processor_of_steps"),
        "wall_ms": {
            part: round(1000 * median(lambda each, part=part: each[size]["parts"][part][WALL]), 1)
            for part in rounds[0][size]["parts"]
        },
        "processor_ms": {
            part: round(
                1000 * median(lambda each, part=part: each[size]["parts"][part][PROCESSOR]), 1
            )
            for part in rounds[0][size]["parts"]
        },
        "checkpoint_wall_ms": 1000 * median(lambda each: each[size]["checkpoint"][WALL]),
        "checkpoint_processor_ms": 1000 * median(lambda each: each[size]["checkpoint"][PROCESSOR]),
        "largest_difference_of_a_weight": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper-student")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0, help="mean clip length")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, help="file of the rows")
    options = parser.parse_args()
    if 1 not in options.workers:
        parser.error("--workers needs 1, which the others are compared with")
    rounds: list[dict[int, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder, options.clips, options.seconds)
        task = make_task(inputs, options.preset, epochs=EPOCHS, batch_size=options.batch_size)
        # Without dropout, whose draws depend on the number of workers, weights can be compared.
        rates = [each.name for each in fields(task.spec) if each.name.endswith("dropout")]
        task = replace(task, spec=replace(task.spec, **dict.fromkeys(rates, 0.0)))
        for number in range(options.rounds):
            rounds.append(
                {n: one_round(n, task, folder / f"{number}-{n}") for n in options.workers}
            )
    common = {name: getattr(options, name) for name in ("preset", "clips", "batch_size", "rounds")}
    for size in options.workers:
        figures = {**common, **row(size, rounds, options.clips)}
        print(json.dumps(add_row("workers", figures, seed=0, file=options.results), indent=2))


if __name__ == "__main__":
    main()
