"""How waiting OpenMP threads slow a training down, on a quiet and on a busy machine.

    python benchmarks/waiting.py [--threads 2] [--rounds 3]

Trains one small student on random states (`small-student`, 80-d audio, 256-d text) in processes
of their own, with the default way of waiting (threads spin) and with the one that workers use
(`multistill.cluster.session.PASSIVE_WAITING`). The variants run alternately. `busy`: one other
process computes on every core. Prints one JSON object: seconds of an epoch, the median of all
epochs after the first; `ratio` is spinning to passive, above 1 where passive is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rows import add_row

from multistill.cluster.session import PASSIVE_WAITING
from multistill.hardware import cores

CLIPS, SECONDS, EPOCHS = 288, 3.0, 4


def train(folder: Path, threads: int) -> list[float]:
    """Seconds of every epoch of one training in this process."""
    import torch
    import training

    training.AUDIO_DIM, training.TEXT_DIM = 80, 256
    torch.set_num_threads(threads)
    inputs = training.make_inputs(folder, CLIPS, SECONDS)
    task = training.make_task(inputs, "small-student", epochs=EPOCHS, batch_size=16)
    reports = training.fit(task, state_dir=folder / "state", device="cpu")
    return [report.metrics["seconds"] for report in reports]


def measure(threads: int, passive: bool) -> list[float]:
    """The same in a new process: OpenMP reads its settings when it is loaded."""
    environment = {k: v for k, v in os.environ.items() if k not in PASSIVE_WAITING}
    environment |= PASSIVE_WAITING if passive else {}
    command = [sys.executable, __file__, "--threads", str(threads), "--one"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return [float(seconds) for seconds in json.loads(done.stdout)]


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train(Path(folder), arguments.threads)))
        return
    for others, processes in (("none", 0), ("a busy process per core", cores())):
        epochs: dict[str, list[float]] = {"spinning": [], "passive": []}
        with other_work(processes):
            for _ in range(arguments.rounds):
                for name, seconds in epochs.items():
                    seconds += measure(arguments.threads, name == "passive")[1:]
        medians = {name: statistics.median(seconds) for name, seconds in epochs.items()}
        figures = {
            "others": others,
            "threads": arguments.threads,
            **{f"{name}_s": round(seconds, 3) for name, seconds in medians.items()},
            "ratio": round(medians["spinning"] / medians["passive"], 2),
        }
        print(json.dumps(add_row("waiting", figures)), flush=True)


if __name__ == "__main__":
    main()
