"""Hand-out of trials by one driver to many simulated nodes, on a real Optuna study.

    python benchmarks/scale.py --trials 10000 --nodes 200

Nodes are simulated: a slot asks for its next trial as soon as its last one has ended, reports up
to three epochs, and ends it, without a process; the scheduler has stopped three of five. What is
measured is the driver's own work in `SharedStudySearcher`: milliseconds from a free slot to its
next trial (`suggest`), of a report and of an ending, by the clock and of processor time, and the
driver's resident memory, by the number of trials that the study already has. The last row is of a
driver that continues the study: seconds until it could hand out a trial.

Every row is appended to benchmarks/results/scale.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rows import add_row

from multistill.config import DistillationConfig, SearchConfig, SearchParameter, TrainConfig
from multistill.models.presets import resolve
from multistill.search.searcher import SharedStudySearcher
from multistill.search.spec import SearchSpec
from multistill.training.task import TrainingTask

EPOCHS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=200, help="slots that ask, one a node")
    parser.add_argument("--sampler", choices=["tpe", "random"], default="tpe")
    parser.add_argument(
        "--storage", default="journal", help="or sqlite, or an empty database's address"
    )
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="multistill-scale-"))
    try:
        for row in measure(folder, options):
            kind = options.storage.partition("://")[0].partition("+")[0]
            settings = {"nodes": options.nodes, "sampler": options.sampler, "storage": kind}
            print(json.dumps(add_row("scale", settings | row)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for every part of the trials, and one of continuing them."""
    spec = _spec(folder, options)
    rng = random.Random(0)
    searcher = _searcher(spec, folder, options)
    every = max(1, options.trials // options.rows)
    times: dict[str, list[float]] = {}

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        result = function(*arguments)
        for key, seconds in (
            (name, time.perf_counter() - start),
            (f"{name}_cpu", time.process_time() - used),
        ):
            times.setdefault(key, []).append(1000 * seconds)
        return result

    running: list[str] = []
    for number in range(options.trials):
        running.append(f"t{number}")
        timed("suggest", searcher.suggest, running[-1])
        if len(running) == options.nodes:  # every slot is used: one ends
            name = running.pop(rng.randrange(len(running)))
            finished = rng.random() < 0.4
            epochs = EPOCHS if finished else 1
            for epoch in range(1, epochs):
                result = {"epoch": epoch, "value": rng.random(), "seconds": 1.0}
                timed("report", searcher.on_trial_result, name, result)
            last = {"epoch": epochs, "value": rng.random(), "finished": finished}
            timed("end", searcher.on_trial_complete, name, last)
        if (number + 1) % every == 0:
            figures = {
                f"{name}_{label}_ms": round(float(np.percentile(values, share)), 2)
                for name, values in times.items()
                for label, share in (("p50", 50), ("p99", 99))
            }
            yield {"trials": number + 1, **figures, "rss_mb": _rss()}
            times.clear()
    size = sum(path.stat().st_size for path in folder.iterdir())  # 0 of a database elsewhere
    start, used = time.perf_counter(), time.process_time()
    _searcher(spec, folder, options)
    yield {
        "trials": options.trials,
        "continue_s": round(time.perf_counter() - start, 2),
        "continue_cpu_s": round(time.process_time() - used, 2),
        "study_mb": round(size / 1e6, 1),
    }


def _spec(folder: Path, options: argparse.Namespace) -> SearchSpec:
    sqlite = f"sqlite:///{folder / 'study.db'}"
    address = {"journal": None, "sqlite": sqlite}.get(options.storage, options.storage)
    config = SearchConfig(
        trials=options.trials,
        sampler=options.sampler,
        storage=address,
        space={
            "distillation.temperature": SearchParameter(low=1, high=8),
            "distillation.weight": SearchParameter(low=0, high=1),
            "train.learning_rate": SearchParameter(low=1e-5, high=1e-2, log=True),
        },
    )
    task = TrainingTask(
        name="student",
        role="student",
        spec=resolve("small-student", {}),
        train=TrainConfig(epochs=EPOCHS, batch_size=64, learning_rate=1e-3),
        seed=1,
        manifest="/m",
        features="/f",
        soft_targets="/s",
        distillation=DistillationConfig(),
    )
    return SearchSpec(task, config, 1, "0123", "scale")


def _searcher(spec: SearchSpec, folder: Path, options: argparse.Namespace) -> SharedStudySearcher:
    return SharedStudySearcher(
        spec,
        folder,
        concurrency=options.nodes,
        max_trials=options.trials,
        driver="0123456789ab",
        stop_requested=lambda: False,
        on_continue=lambda trial_id, trial: None,
    )


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


if __name__ == "__main__":
    main()
