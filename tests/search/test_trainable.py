"""The value of a trial that its scheduler sees, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from helpers.search_case import make_spec

from multistill.search.trainable import StudentTrainable

CURVE = [0.2, 0.9, 0.2, 0.7, 0.8, 0.7]


@dataclass
class Report:
    epoch: int
    metrics: dict[str, float]
    stop: bool = False


def objective(task: Any, state_dir: Path) -> Iterator[Report]:
    """Continues after the epochs that a file in the folder counts."""
    done = state_dir / "done"
    start = int(done.read_text()) if done.exists() else 0
    for epoch, value in enumerate(CURVE[start:], start=start + 1):
        done.write_text(str(epoch))
        yield Report(epoch, {"valid_macro_f1": value, "valid_loss": 1.0 - value, "train_loss": 1.0})


def trial(folder: Path) -> StudentTrainable:
    """A trial as Tune starts it: in a new process after a failure."""
    trainable = StudentTrainable.__new__(StudentTrainable)
    config = {"folder": str(folder), "number": 0, "values": {}, "concurrency": 1, "driver": "d"}
    trainable.setup(config, objective)
    return trainable


@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
@pytest.mark.parametrize("window", [1, 2, 3, 10])
@pytest.mark.parametrize("restart", [1, 4])
def test_the_value_is_the_best_mean_over_the_window_also_after_a_restart(
    tmp_path: Path, metric: str, window: int, restart: int
) -> None:
    spec = make_spec(metric=metric)
    replace(spec, base=spec.base.with_train(select_window=window)).write(tmp_path)
    sign = 1.0 if metric == "macro_f1" else -1.0
    curve = CURVE if metric == "macro_f1" else [1.0 - value for value in CURVE]
    first = trial(tmp_path)
    values = [first.step()["value"] for _ in range(restart)]
    first.cleanup()
    second = trial(tmp_path)
    values += [second.step()["value"] for _ in range(len(CURVE) - restart)]
    second.cleanup()
    means = [fmean(curve[max(0, end - window) : end]) for end in range(1, len(curve) + 1)]
    best = [sign * max(sign * mean for mean in means[:end]) for end in range(1, len(means) + 1)]
    assert values == pytest.approx(best)
