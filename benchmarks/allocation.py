"""What training costs while freed memory goes back to the system, and while glibc keeps it.

    python benchmarks/allocation.py [--rounds 3] [--epochs 5]

Trains small models on random states in processes of their own, one thread each, with glibc's
defaults and with `multistill.cluster.session.KEPT_MEMORY`, which workers use. The variants run
alternately. A row a model: processor seconds of an epoch after the first, the part of them in the
kernel, page faults and peak memory, as medians of the rounds; `ratio` is of the processor times,
default to kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import add_row

from multistill.cluster.session import KEPT_MEMORY

CLIPS, SECONDS = 96, 2.8
MODELS = (("small-student", 1024), ("small-student", 384), ("light-student", 80))
"""Presets and the width of their audio states."""


def train(preset: str, width: int, epochs: int) -> dict[str, float]:
    """Figures of an epoch of one training in this process."""
    import torch
    import training

    training.AUDIO_DIM = width
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        inputs = training.make_inputs(Path(name), CLIPS, SECONDS)
        task = training.make_task(inputs, preset, epochs=epochs + 1, batch_size=16)
        reports = training.fit(task, state_dir=Path(name) / "state", device="cpu")
        next(reports)
        before = resource.getrusage(resource.RUSAGE_SELF)
        done = sum(1 for _ in reports)
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernel = after.ru_stime - before.ru_stime
    return {
        "processor_s": (after.ru_utime - before.ru_utime + kernel) / done,
        "kernel_s": kernel / done,
        "faults": (after.ru_minflt - before.ru_minflt) / done,
        "peak_mb": after.ru_maxrss / 1024,
    }


def measure(preset: str, width: int, epochs: int, kept: bool) -> dict[str, float]:
    """The same in a new process: glibc reads its settings when a process starts."""
    environment = {k: v for k, v in os.environ.items() if k not in KEPT_MEMORY}
    environment |= KEPT_MEMORY if kept else {}
    command = [sys.executable, __file__, "--epochs", str(epochs), "--one", preset, str(width)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--results", type=Path, help="file of the rows")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.one[0], int(options.one[1]), options.epochs)))
        return
    for preset, width in MODELS:
        rounds = [
            [measure(preset, width, options.epochs, kept) for kept in (False, True)]
            for _ in range(options.rounds)
        ]
        figures = {
            f"{key}_{variant}": round(statistics.median(each[number][key] for each in rounds), 3)
            for number, variant in enumerate(("default", "kept"))
            for key in rounds[0][0]
        }
        ratios = [default["processor_s"] / kept["processor_s"] for default, kept in rounds]
        row = {"preset": preset, "audio_width": width, "rounds": options.rounds, **figures}
        row["ratio"] = round(statistics.median(ratios), 3)
        print(json.dumps(add_row("allocation", row, seed=0, file=options.results)))


if __name__ == "__main__":
    main()
