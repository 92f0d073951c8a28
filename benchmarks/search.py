"""The overhead of a search over its training, and its gain over random search and a grid.

    python benchmarks/search.py many [--trials 2000]
    python benchmarks/search.py overhead FOLDER [--trials 32] [--epochs N, default: trials of 22 s]
    python benchmarks/search.py compare FOLDER [--trials 24] [--epochs 20] [--seeds 5]
                                               [--spaces distillation,training,all]
                                               [--results FILE]

`compare` gives every method as many epochs of training as a grid of `--trials` points takes, and
prints the best validation metric that it has found by then, in three spaces. Epochs do not depend
on what else the machine does. Validation should have many clips (`split.valid` of 0.3 and more), or
the best trials tie. Searches that are in RESULTS already are not repeated.

FOLDER is a finished search (`<workspace>/search/<fingerprint>`): its student is trained again
with its features and soft targets, and nothing in the folder is changed. `many` needs no
folder: its trials evaluate a formula. Results depend on the machine; run on an idle one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rows import RESULTS, add_row

from multistill.config import DistillationConfig, SearchConfig, SearchParameter, TrainConfig
from multistill.models.presets import resolve
from multistill.search.spec import SearchSpec
from multistill.search.study import search
from multistill.tracking.logger import NullLogger
from multistill.training.task import TrainingTask

T, WEIGHT = "distillation.temperature", "distillation.weight"
TRIAL_SECONDS = 22.0

SPACES = {
    "distillation": {
        T: SearchParameter(low=1.0, high=8.0, log=True),
        WEIGHT: SearchParameter(low=0.1, high=0.9),
    },
    "training": {
        "train.learning_rate": SearchParameter(low=1e-4, high=1e-2, log=True),
        "train.weight_decay": SearchParameter(low=1e-3, high=1.0, log=True),
        "model.classifier_dropout": SearchParameter(low=0.0, high=0.8),
    },
    "all": {
        T: SearchParameter(low=1.0, high=8.0, log=True),
        WEIGHT: SearchParameter(low=0.1, high=0.9),
        "train.learning_rate": SearchParameter(low=1e-4, high=1e-2, log=True),
        "model.paths": SearchParameter(choices=["deep", "wide", "both"]),
        "model.classifier_dropout": SearchParameter(low=0.0, high=0.8),
    },
}
"""A small space, one in which one setting matters most, and a mixed one."""


@dataclass(frozen=True)
class Report:
    epoch: int
    metrics: dict[str, float]
    stop: bool


def formula(task: TrainingTask, *, state_dir: Path) -> Iterator[Report]:
    """An objective in place of training: three epochs without work."""
    settings = task.distillation or DistillationConfig()
    distance = (math.log(settings.temperature / 3) / 2) ** 2 + (settings.weight - 0.6) ** 2
    for epoch in range(1, 4):
        value = max(0.0, 0.9 - distance) * (1 - 0.5**epoch)
        yield Report(epoch, {"train_loss": 1 - value, "valid_macro_f1": value}, epoch == 3)


class MemoryLogger(NullLogger):
    """Prints the driver's resident memory while the search runs."""

    def __init__(self) -> None:
        self.started, self.samples = time.monotonic(), [(0, resident_mb())]

    def progress(self, done: float, total: float, unit: str, **stats: float) -> None:
        if done % 200 == 0:
            self.samples.append((int(done), resident_mb()))
            rate = done / (time.monotonic() - self.started)
            print(f"{int(done):6d} trials  {self.samples[-1][1]:7.1f} MB  {rate:6.1f} trials/s")


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def many(trials: int) -> None:
    """Thousands of trials: memory of the driver and trials per second."""
    base = TrainingTask(
        name="student",
        role="student",
        spec=resolve("small-student", {}),
        train=TrainConfig(epochs=3, batch_size=64, learning_rate=5e-5),
        seed=1,
        manifest="-",
        features="-",
        soft_targets="-",
        distillation=DistillationConfig(),
    )
    config = SearchConfig(trials=trials, concurrent=2, grace_epochs=1)
    logger = MemoryLogger()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "search"
        summary = search(base, config, 1, out, logger, "many", objective=formula)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    first = next(mb for done, mb in logger.samples if done >= 200)
    last = logger.samples[-1][1]
    print(f"best {summary['best']['value']:.4f} of 0.7875 possible; study on disk {size:.1f} MB")
    print(f"driver memory after 200 trials {first:.0f} MB, at the end {last:.0f} MB")
    figures = {"driver_mb_at_200": first, "driver_mb": last, "study_mb": size}
    rate = trials / summary["seconds"]
    add_row("search", {"what": "many", "trials": trials, "trials_per_s": rate, **figures})


def epoch_seconds(folder: Path) -> float:
    """Median seconds of an epoch in the trials of a finished search."""
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    return statistics.median(row["seconds"] / row["epochs"] for row in rows if row["epochs"])


def print_estimate(trials: float, epochs: int, folder: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    minutes = trials * epochs * epoch_seconds(folder) / cores / 60
    print(f"{trials:g} trials of {epochs} epochs: about {minutes:.0f} min on {cores} cores")


def overhead(folder: Path, trials: int, epochs: int | None) -> None:
    """Wall time relative to training time, without early stopping."""
    spec = SearchSpec.read(folder)
    epochs = epochs or math.ceil(TRIAL_SECONDS / epoch_seconds(folder))
    print_estimate(trials, epochs, folder)
    config = spec.config.model_copy(
        update={"trials": trials, "epochs": epochs, "grace_epochs": epochs, "second": None}
    )
    with tempfile.TemporaryDirectory() as out:
        summary = search(spec.base, config, spec.seed, Path(out) / "search", fingerprint="bench")
    ideal = summary["training_share"] * summary["seconds"]
    print(
        f"{trials} trials of {summary['trial_seconds'] / trials:.1f} s, "
        f"{summary['concurrency']} at the same time"
    )
    print(f"seconds from hand-out to first step, median: {summary['start_seconds']:.2f}")
    print(f"share of wall time in training epochs: {summary['training_share']:.3f}")
    print(f"wall time / (training time / concurrency): {summary['seconds'] / ideal:.3f}")
    add_row(
        "search",
        {
            "what": "overhead",
            "trials": trials,
            "trial_s": summary["trial_seconds"] / trials,
            "concurrency": summary["concurrency"],
            "to_first_step_s": summary["start_seconds"],
            "training_share": summary["training_share"],
            "wall_over_ideal": summary["seconds"] / ideal,
        },
    )


def compare(
    folder: Path, trials: int, epochs: int, seeds: int, spaces: list[str], results: Path
) -> None:
    """Best validation metric after the epochs of a grid, per space, method and seed.

    Every method of every cell is a line of `results`, and is not repeated.
    """
    spec = SearchSpec.read(folder)
    done: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            same = (row["trials"], row["epochs"]) == (trials, epochs)
            if same and row["space"] in spaces and row["seed"] < seeds:
                done[row["space"], row["seed"], row["method"]] = row["curve"]
    print_estimate(trials * (3 * seeds * len(spaces) - len(done)), epochs, folder)
    for name in spaces:
        space = SPACES[name]
        points = grid(space, trials)
        size = math.prod(len(parameter.choices or []) for parameter in points.values())
        methods: dict[str, dict[str, Any]] = {
            "grid": {"sampler": "grid", "space": points, "trials": size},
            "random": {"sampler": "random", "space": space, "trials": size},
            # Stopped trials cost less: there is time for more of them.
            "tpe + asha": {
                "space": space,
                "trials": 3 * size,
                "grace_epochs": max(1, epochs // 4),
            },
        }
        found: dict[str, list[float]] = {method: [] for method in methods}
        for seed in range(seeds):
            base = replace(spec.base, seed=spec.base.seed + seed)
            curves = {}
            for method, changes in methods.items():
                cell = (name, seed, method)
                if cell not in done:
                    settings = {"epochs": epochs, "grace_epochs": epochs, "second": None, **changes}
                    config = spec.config.model_copy(update=settings)
                    with tempfile.TemporaryDirectory() as temporary:
                        out = Path(temporary) / "search"
                        search(base, config, spec.seed + seed, out, fingerprint=f"bench-{seed}")
                        done[cell] = curve(out)
                    row = {"space": name, "seed": seed, "method": method, "curve": done[cell]}
                    figures = row | {"trials": trials, "epochs": epochs}
                    add_row("search-compare", figures, seed=row["seed"], file=results)
                curves[method] = done[cell]
            budget = curves["grid"][-1][0]
            for method, steps in curves.items():
                within = [best for spent, best in steps if spent <= budget]
                found[method].append(within[-1])
            values = ", ".join(f"{method} {found[method][-1]:.4f}" for method in methods)
            print(f"{name}, seed {seed}, {budget} epochs: {values}", flush=True)
        for method, values in found.items():
            gains = [value - grids for value, grids in zip(values, found["grid"], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
            print(
                f"{name}: {method:10s} best {statistics.fmean(values):.4f}, "
                f"{statistics.fmean(gains):+.4f} ± {error:.4f} against the grid"
            )


def grid(space: dict[str, SearchParameter], trials: int) -> dict[str, SearchParameter]:
    """The space as a grid of about `trials` points: evenly spaced, logarithmically where it says.

    Choices are all taken; ranges share the rest, each with at least two points.
    """
    chosen = math.prod(len(parameter.choices or [None]) for parameter in space.values())
    ranges = sum(parameter.choices is None for parameter in space.values())
    count = max(2, round((trials / chosen) ** (1 / max(1, ranges))))
    points: dict[str, SearchParameter] = {}
    for name, parameter in space.items():
        if parameter.choices is None:
            assert parameter.low is not None and parameter.high is not None
            spaced = np.geomspace if parameter.log else np.linspace
            values = spaced(parameter.low, parameter.high, count).tolist()
            points[name] = SearchParameter(choices=[float(f"{value:.6g}") for value in values])
        else:
            points[name] = parameter
    return points


def curve(out: Path) -> list[tuple[int, float]]:
    """(epochs trained so far, best value at full budget so far) after each trial."""
    spent, best, steps = 0, -math.inf, []
    for row in pq.read_table(out / "trials.parquet").to_pylist():
        spent += row["epochs"]
        if row["state"] == "complete":
            best = max(best, row["value"])
        steps.append((spent, best))
    return steps


def main() -> None:
    import ray

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["many", "overhead", "compare"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--results", type=Path, default=RESULTS / "search-compare.jsonl")
    arguments = parser.parse_args()
    if arguments.what != "many" and arguments.folder is None:
        parser.error("give the folder of a finished search")
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=200_000_000,
    )
    try:
        if arguments.what == "many":
            many(arguments.trials or 2000)
        elif arguments.what == "overhead":
            overhead(arguments.folder, arguments.trials or 32, arguments.epochs)
        else:
            compare(
                arguments.folder,
                arguments.trials or 24,
                arguments.epochs or 20,
                arguments.seeds,
                arguments.spaces.split(","),
                arguments.results,
            )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
