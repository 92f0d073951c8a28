"""After the search: its best trials at full budget from several seeds, a winner, its control.

One training is one draw: another seed moves a small student by as much as most settings
do. So settings are compared by their mean over seeds, on validation; the test set sees
the winner only. The seeds are those after the job's own: with that one the trials were
trained, so the best trial is the luckiest draw of it, and its figure flatters. The student
that is handed over is that of the first of these seeds, not the luckiest one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.config import SearchConfig
from multistill.workspace import canonical, read_json

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger
    from multistill.training.model_store import ModelStore
    from multistill.training.task import TrainingTask


def retrain(
    base: TrainingTask,
    top: Sequence[Mapping[str, Any]],
    config: SearchConfig,
    model_store: ModelStore,
    inputs: Mapping[str, str],
    out: Path,
    logger: RunLogger,
) -> dict[str, Any]:
    """Train the best trials again and choose one of them on validation.

    Args:
        top: settings of the best trials, best first.
        inputs, out: as in `ModelStore.train`.
    Returns:
        `models` (index), `winner`, `finalists` and `control`: each `name`,
        `members` (model names, in the order of `seeds`), `seeds`, `metric`, and over them
        `values`, `mean`, `sd` (null with one seed).
    """
    finalists = _finalists(base, top, config)
    alone = {name: _controls(base.name, name, tasks) for name, tasks in finalists.items()}
    shared = len({canonical([t.identity() for t in tasks]) for tasks in alone.values()}) == 1
    tasks = [task for members in finalists.values() for task in members]
    # One worker group less to start where the winner does not decide what its control is.
    tasks += next(iter(alone.values())) if shared else []
    logger.info(
        f"training the best {len(finalists)} at full budget, from {config.seeds} fresh seeds"
        if config.seeds > 1
        else f"training the best {len(finalists)} at full budget, from a fresh seed"
    )
    models = dict(model_store.train(tasks, inputs, out, logger)["models"])
    judged = [
        _judged(name, members, models, config, model_store) for name, members in finalists.items()
    ]
    sign = -1.0 if config.mode == "min" else 1.0
    best = max(judged, key=lambda found: sign * found["mean"])
    control = alone[best["name"]]
    if not shared:
        models |= model_store.train(control, inputs, out, logger)["models"]
    logger.tags({"winner": best["name"]})
    return {
        "models": models,
        "winner": best["name"],
        "finalists": [{**found, "params": dict(top[place])} for place, found in enumerate(judged)],
        "control": _judged(f"{base.name}-search-control", control, models, config, model_store),
    }


def kept_epoch(folder: Path) -> dict[str, float]:
    """Metrics of the epoch whose weights a finished model has."""
    history = read_json(folder / "history.json")
    return next(e for e in history["epochs"] if int(e["epoch"]) == history["best_epoch"])


def _finalists(
    base: TrainingTask, top: Sequence[Mapping[str, Any]], config: SearchConfig
) -> dict[str, list[TrainingTask]]:
    """The best trials at the student's full budget, since trials may be shorter."""
    from multistill.search.space import apply
    from multistill.training.task import seed_tasks

    found = {}
    for place, values in enumerate(top[: config.retrain], start=1):
        task = apply(base, values)
        # Like its trial, a finalist keeps the epoch that the search's metric calls best.
        name = f"{base.name}-search-{place}"
        fresh = replace(task.with_train(metric=config.metric), name=name, seed=base.seed + 1)
        found[name] = seed_tasks(fresh, config.seeds)
    return found


def _controls(student: str, finalist: str, tasks: Sequence[TrainingTask]) -> list[TrainingTask]:
    """The same trainings without a teacher: settings, budget and seeds are the finalist's."""
    from multistill.training.task import seed_tasks

    control = tasks[0].control(f"{student}-search-control")
    return seed_tasks(replace(control, control_of=finalist), len(tasks))


def _judged(
    name: str,
    tasks: Sequence[TrainingTask],
    models: Mapping[str, Any],
    config: SearchConfig,
    model_store: ModelStore,
) -> dict[str, Any]:
    metric = f"valid_{config.metric}"
    values = [kept_epoch(model_store.folder(models[task.name]))[metric] for task in tasks]
    return {
        "name": name,
        "members": [task.name for task in tasks],
        "seeds": [task.seed for task in tasks],
        "metric": metric,
        "values": values,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }
