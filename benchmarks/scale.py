"""Hand-out of trials by one driver to many simulated nodes, on a real Optuna study.

    python benchmarks/scale.py --trials 10000 --nodes 200

Nodes are simulated: a slot asks for its next trial as soon as its last one has ended, reports
three epochs, and ends it, without a process. What is measured is the driver's own work in
`SharedStudySearcher`: milliseconds from a free slot to its next trial (`suggest`), of a report and
of an ending, and the driver's resident memory, by the number of trials that the study already has.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
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
    parser.add_argument("--storage", choices=["journal", "sqlite"], default="journal")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="multistill-scale-"))
    try:
        for row in measure(folder, options):
            settings = {name: getattr(options, name) for name in ("nodes", "sampler", "storage")}
            print(json.dumps(add_row("scale", settings | row)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, options: argparse.Namespace) -> Any:
    """Yield a row of figures for every part of the trials."""
    address = f"sqlite:///{folder / 'study.db'}" if options.storage == "sqlite" else None
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
    spec = SearchSpec(task, config, 1, "0123", "scale")
    rng = random.Random(0)
    searcher = SharedStudySearcher(
        spec,
        folder,
        concurrency=options.nodes,
        max_trials=options.trials,
        driver="0123456789ab",
        stop_requested=lambda: False,
        on_continue=lambda trial_id, trial: None,
    )
    every = max(1, options.trials // options.rows)
    times: dict[str, list[float]] = {"suggest": [], "report": [], "end": []}

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        times[name].append(1000 * (time.perf_counter() - start))
        return result

    running: list[str] = []
    for number in range(options.trials):
        running.append(f"t{number}")
        timed("suggest", searcher.suggest, running[-1])
        if len(running) == options.nodes:  # every slot is used: one ends
            name = running.pop(rng.randrange(len(running)))
            for epoch in range(1, EPOCHS):
                result = {"epoch": epoch, "value": rng.random(), "seconds": 1.0}
                timed("report", searcher.on_trial_result, name, result)
            last = {"epoch": EPOCHS, "value": rng.random(), "finished": True}
            timed("end", searcher.on_trial_complete, name, last)
        if (number + 1) % every == 0:
            figures = {
                f"{name}_{label}_ms": round(float(np.percentile(values, share)), 2)
                for name, values in times.items()
                if values
                for label, share in (("p50", 50), ("p99", 99))
            }
            yield {"trials": number + 1, **figures, "rss_mb": _rss()}
            for values in times.values():
                values.clear()


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


if __name__ == "__main__":
    main()
