"""Retrains the best trials of a search from several seeds and chooses a winner and its control.

One training is one random draw: another seed changes a small student by as much as most
settings do. Settings are therefore compared by their mean over seeds, on validation; the
test set is used for the winner only. The seeds are those after the job's own: the trials were
trained with that one, so the best trial is the luckiest draw of it and its value is
optimistic. The student that is handed over is that of the first of these seeds, not of the
luckiest one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
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
    recorded_name: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Train the best trials again and choose one of them on validation.

    Args:
        top: settings of the best trials, best first.
        inputs: fingerprints of the artifacts that the trainings read, as in `ModelStore.train`.
        out: as there.
        recorded_name: of a model in its record, which in a cross-validation names the fold.

    Returns:
        `models` (index), `winner`, `finalists` and `control`: each `name`,
        `members` (model names, in the order of `seeds`), `seeds`, `metric`, and over them
        `values`, `mean`, `sd` (null with one seed).
    """
    finalists = _finalists(base, top, config)
    controls = {name: _controls(base.name, tasks) for name, tasks in finalists.items()}
    identities = {canonical([t.identity() for t in tasks]) for tasks in controls.values()}
    same_control = len(identities) == 1
    tasks = [task for members in finalists.values() for task in members]
    if same_control:  # whichever finalist wins: saves the start of a second worker group
        tasks += next(iter(controls.values()))
    logger.info(
        f"training the best {len(finalists)} at full budget, from {config.seeds} new seeds"
        if config.seeds > 1
        else f"training the best {len(finalists)} at full budget, from a new seed"
    )

    def train(tasks: Sequence[TrainingTask]) -> dict[str, Any]:
        planned = [(replace(task, name=recorded_name(task.name)), inputs) for task in tasks]
        index = model_store.train(planned, out, logger)["models"]
        return {task.name: index[recorded_name(task.name)] for task in tasks}

    models = train(tasks)
    summaries = [
        _summary(name, members, models, config, model_store) for name, members in finalists.items()
    ]
    sign = -1.0 if config.mode == "min" else 1.0
    winner = max(summaries, key=lambda summary: sign * summary["mean"])["name"]
    if not same_control:
        models |= train(controls[winner])
    logger.tags({"winner": winner})
    control_name = f"{base.name}-search-control"
    return {
        "models": models,
        "winner": winner,
        "finalists": [
            {**summary, "params": dict(params)}
            for summary, params in zip(summaries, top, strict=False)  # `top` may be longer
        ],
        "control": _summary(control_name, controls[winner], models, config, model_store),
    }


def winner_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The finalist that `retrain` chose."""
    return next(each for each in result["finalists"] if each["name"] == result["winner"])


def winner_tasks(
    base: TrainingTask, winner: Mapping[str, Any], config: SearchConfig
) -> list[TrainingTask]:
    """The trainings of a winner and of its control, on the data of another `base`."""
    tasks = _finalist(base, winner["name"], winner["params"], config)
    return [*tasks, *_controls(base.name, tasks)]


def best_epoch(folder: Path) -> dict[str, float]:
    """Metrics of the epoch whose weights a trained model has."""
    history = read_json(folder / "history.json")
    return next(e for e in history["epochs"] if int(e["epoch"]) == history["best_epoch"])


def _finalists(
    base: TrainingTask, top: Sequence[Mapping[str, Any]], config: SearchConfig
) -> dict[str, list[TrainingTask]]:
    """The best trials at the student's full budget, which may be longer than a trial's."""
    names = [f"{base.name}-search-{rank}" for rank in range(1, config.retrain + 1)]
    return {
        name: _finalist(base, name, values, config)
        for name, values in zip(names, top, strict=False)  # there may be fewer trials
    }


def _finalist(
    base: TrainingTask, name: str, params: Mapping[str, Any], config: SearchConfig
) -> list[TrainingTask]:
    from multistill.search.space import apply
    from multistill.training.task import seed_tasks

    # Like its trial, a finalist keeps the epoch that is best by the search's metric.
    task = apply(base, params).with_train(metric=config.metric)
    return seed_tasks(replace(task, name=name, seed=base.seed + 1), config.seeds)


def _controls(student: str, tasks: Sequence[TrainingTask]) -> list[TrainingTask]:
    """The finalist's settings, budget and seeds without a teacher."""
    from multistill.training.task import seed_tasks

    return seed_tasks(tasks[0].control(f"{student}-search-control"), len(tasks))


def _summary(
    name: str,
    tasks: Sequence[TrainingTask],
    models: Mapping[str, Any],
    config: SearchConfig,
    model_store: ModelStore,
) -> dict[str, Any]:
    metric = f"valid_{config.metric}"
    values = [best_epoch(model_store.folder(models[task.name]))[metric] for task in tasks]
    return {
        "name": name,
        "members": [task.name for task in tasks],
        "seeds": [task.seed for task in tasks],
        "metric": metric,
        "values": values,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }
