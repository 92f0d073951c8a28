"""The results of a study as files: a table of all trials, a summary with the best."""

from __future__ import annotations

import csv
import math
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.search.analysis import grid, history, importance
from multistill.search.locks import JOINED
from multistill.search.spec import SearchSpec
from multistill.search.storage import (
    DRIVER,
    EXPERIMENT,
    had_its_budget,
    outcome_of,
    run_suffix,
)
from multistill.search.trial_folders import run_key
from multistill.tracking.logger import RunLogger
from multistill.workspace import to_json, write_json

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TRIALS = "trials.parquet"
TABLE = "trials.csv"
STUDY = "study.json"

SCHEMA = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("params", pa.string(), nullable=False),  # JSON: names differ between trials
        pa.field("epochs", pa.int32(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("cost", pa.float64()),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("started", pa.timestamp("ms")),
    ]
)
"""`state`: complete, stopped (by the scheduler), failed, or running."""

TABLE_COLUMNS = ("trial", "state", "value", "cost", "epochs", "seconds", "reason")

_STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}

Rows = list[dict[str, Any]]


def trial_rows(study: optuna.Study) -> Rows:
    """Every trial that was handed out, in order of its number."""
    suffix = run_suffix(study)
    return [
        _row(trial, suffix)
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in _STATES
    ]


def ranked(rows: Rows, spec: SearchSpec) -> Rows:
    """Trials with a value, best first.

    Only trials that had their full budget can be compared; those that the scheduler stopped
    come after them.
    """
    sign = -1.0 if spec.config.mode == "max" else 1.0
    valued = [row for row in rows if row["value"] is not None and row["state"] != "running"]
    return sorted(valued, key=lambda r: (r["state"] != "complete", sign * r["value"], r["trial"]))


def pareto(rows: Rows, spec: SearchSpec) -> Rows:
    """Trials that no other dominates in the metric and the cost, cheapest first."""
    sign = -1.0 if spec.config.mode == "max" else 1.0
    complete = [r for r in rows if r["state"] == "complete" and r["cost"] is not None]
    front: Rows = []
    for row in sorted(complete, key=lambda r: (r["cost"], sign * r["value"], r["trial"])):
        if not front or sign * row["value"] < sign * front[-1]["value"]:
            front.append(row)
    return front


def write_results(
    study: optuna.Study, spec: SearchSpec, out: Path, concurrency: int
) -> dict[str, Any]:
    """Write `trials.parquet` and `study.json`.

    Args:
        concurrency: trials that this driver ran at the same time.

    Returns:
        the content of study.json.
    """
    rows = trial_rows(study)
    table = pa.Table.from_pylist(
        [{**row, "params": to_json(row["params"], sort_keys=True)} for row in rows],
        schema=SCHEMA,
    )
    pq.write_table(table, out / TRIALS)
    best_first = ranked(rows, spec)
    config = spec.config
    summary = {
        "study": spec.study,
        "metric": f"valid_{config.metric}",
        "mode": config.mode,
        "second": config.second,
        "trials": len(rows),
        "counts": {name: sum(r["state"] == name for r in rows) for name in _STATES.values()},
        "best": _short(best_first[0]) if best_first else None,
        "top": _distinct_settings(best_first, config.retrain),
        "epochs": spec.epochs,
        "trained_epochs": sum(row["epochs"] for row in rows),
        "trial_seconds": round(sum(row["seconds"] for row in rows), 3),
        **_wall_time(study, concurrency),
    }
    summary["importance"] = importance(study, spec.seed)
    summary["history"] = history(rows, config.mode)
    summary["grid"] = grid(rows, "distillation.temperature", "distillation.weight")
    if config.second:
        summary["pareto"] = [_short(row) for row in pareto(rows, spec)]
    write_json(out / STUDY, summary)
    return summary


def log_table(rows: Rows, logger: RunLogger) -> None:
    """Log all trials as one table, which MLflow shows, with a column for each searched name.

    One file of the search's run takes the place of thousands of runs in a list.
    """
    names = sorted({name for row in rows for name in row["params"]})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TABLE
        with file.open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerow([*TABLE_COLUMNS, *names])
            for row in rows:
                table.writerow(
                    [row[name] for name in TABLE_COLUMNS]
                    + [row["params"].get(name) for name in names]
                )
        logger.artifact(file, "search")


def log_joined_trials(study: optuna.Study, logger: RunLogger, metric: str) -> None:
    """Log the trials of drivers that joined the search, each of them once.

    Those drivers have no tracking server: two drivers that log to one run would end each
    other's child runs.
    """
    attributes, suffix = study.user_attrs, run_suffix(study)
    for trial in study.get_trials(deepcopy=False):
        logged = f"recorded-{trial.number}"  # of the study: a finished trial is read-only
        joined = str(trial.user_attrs.get(DRIVER, "")).startswith(JOINED)
        if not joined or logged in attributes or not trial.state.is_finished():
            continue
        row = _row(trial, suffix)
        child = logger.child(f"trial {trial.number}", row["key"], "trial")
        child.params(row["params"])
        for epoch, value in sorted(trial.intermediate_values.items()):
            child.metrics({f"valid_{metric}": value}, step=epoch)
        if row["value"] is not None:
            child.metrics({"value": row["value"], "trained_epochs": float(row["epochs"])})
        child.tags({"reason": row["reason"] or "ran its budget", "driver": "joined"})
        child.close("FAILED" if row["state"] == "failed" else "FINISHED")
        study.set_user_attr(logged, True)


def _row(trial: FrozenTrial, suffix: str) -> dict[str, Any]:
    outcome = outcome_of(trial)
    value = trial.values[0] if trial.values else None
    state = _STATES[trial.state.name]
    if state == "complete" and not had_its_budget(trial):
        state = "stopped"
    return {
        "trial": trial.number,
        "key": run_key(trial.number, suffix),
        "state": state,
        "reason": str(outcome.get("reason", "")),
        "params": dict(trial.params),
        "epochs": int(outcome.get("epochs", 0)),
        "value": float(value) if value is not None and math.isfinite(value) else None,
        "cost": outcome.get("cost"),
        "seconds": float(outcome.get("seconds", 0.0)),
        "started": trial.datetime_start,
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    names = ("trial", "value", "cost", "params", "epochs")
    return {name: row[name] for name in names if row[name] is not None}


def _distinct_settings(best_first: Rows, limit: int) -> list[dict[str, Any]]:
    """The best settings without duplicates, which a sampler may suggest."""
    settings: list[dict[str, Any]] = []
    for row in best_first:
        if len(settings) < limit and row["params"] not in settings:
            settings.append(row["params"])
    return settings


def _wall_time(study: optuna.Study, concurrency: int) -> dict[str, Any]:
    """What all experiments of the search took, including those of earlier processes.

    An experiment whose driver was killed is not counted: it wrote nothing.
    """
    experiments = [value for name, value in study.user_attrs.items() if name.startswith(EXPERIMENT)]
    start_delays = [seconds for experiment in experiments for seconds in experiment["waits"]]
    slot_seconds = sum(experiment["seconds"] * experiment["slots"] for experiment in experiments)
    training = sum(experiment["training"] for experiment in experiments)
    return {
        "seconds": round(sum(experiment["seconds"] for experiment in experiments), 3),
        "concurrency": concurrency,
        "start_seconds": round(statistics.median(start_delays), 3) if start_delays else None,
        "training_share": round(training / slot_seconds, 4) if slot_seconds else None,
    }
