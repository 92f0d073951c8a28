"""A finished study as files: every trial in a table, the best in a summary."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.search.analysis import grid, history, importance
from multistill.search.request import Request
from multistill.search.storage import JOINED, attribute, trial_key
from multistill.tracking.logger import RunLogger
from multistill.workspace import write_json

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TRIALS = "trials.parquet"
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

_STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Every trial that was handed out, in order of its number."""
    return [
        _row(trial) for trial in study.get_trials(deepcopy=False) if trial.state.name in _STATES
    ]


def ranked(found: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    """Trials with a value, best first. Only trials that had their full budget are compared;
    those that the scheduler stopped follow after them."""
    sign = -1.0 if request.config.mode == "max" else 1.0
    valued = [row for row in found if row["value"] is not None and row["state"] != "running"]
    return sorted(valued, key=lambda r: (r["state"] != "complete", sign * r["value"], r["trial"]))


def pareto(found: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    """Trials that no other beats in both the metric and the cost, cheapest first."""
    sign = -1.0 if request.config.mode == "max" else 1.0
    valued = [r for r in found if r["state"] == "complete" and r["cost"] is not None]
    front: list[dict[str, Any]] = []
    for row in sorted(valued, key=lambda r: (r["cost"], sign * r["value"], r["trial"])):
        if not front or sign * row["value"] < sign * front[-1]["value"]:
            front.append(row)
    return front


def write_results(
    study: optuna.Study, request: Request, out: Path, seconds: float, **more: Any
) -> dict[str, Any]:
    """Write `trials.parquet` and `study.json`; returns what study.json holds."""
    found = rows(study)
    table = pa.Table.from_pylist(
        [{**row, "params": json.dumps(row["params"], sort_keys=True)} for row in found],
        schema=SCHEMA,
    )
    pq.write_table(table, out / TRIALS)
    order = ranked(found, request)
    config = request.config
    summary = {
        "study": request.study,
        "metric": f"valid_{config.metric}",
        "mode": config.mode,
        "second": config.second,
        "trials": len(found),
        "counts": {name: sum(r["state"] == name for r in found) for name in _STATES.values()},
        "best": _shown(order[0]) if order else None,
        "top": _settings(order, config.retrain),
        "epochs": request.epochs,
        "trained_epochs": sum(row["epochs"] for row in found),
        "trial_seconds": round(sum(row["seconds"] for row in found), 3),
        "seconds": round(seconds, 3),
        **more,
    }
    summary["importance"] = importance(study, request.seed)
    summary["history"] = history(found, config.mode)
    summary["grid"] = grid(found, "distillation.temperature", "distillation.weight")
    if config.second:
        summary["pareto"] = [_shown(row) for row in pareto(found, request)]
    write_json(out / STUDY, summary)
    return summary


def _settings(order: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The best distinct settings, best first: a sampler may ask for one more than once."""
    found: list[dict[str, Any]] = []
    for row in order:
        if len(found) < most and row["params"] not in found:
            found.append(row["params"])
    return found


def record_joined(study: optuna.Study, logger: RunLogger) -> None:
    """Records of the trials that other drivers ran: they have no tracking server of their own.

    Two drivers that wrote to one record would end each other's runs.
    """
    known = study.user_attrs
    for trial in study.get_trials(deepcopy=False):
        recorded = f"recorded-{trial.number}"  # of the study: an ended trial takes no more
        joined = str(trial.user_attrs.get("driver", "")).startswith(JOINED)
        if not joined or recorded in known or not trial.state.is_finished():
            continue
        row = _row(trial)
        child = logger.child(f"trial {trial.number}", row["key"], "trial")
        child.params(row["params"])
        for epoch, value in sorted(trial.intermediate_values.items()):
            child.metrics({"value": value}, step=epoch)
        if row["value"] is not None:
            child.metrics({"value": row["value"], "epochs": float(row["epochs"])})
        child.tags({"reason": row["reason"] or "ran its budget", "driver": "joined"})
        child.close("FAILED" if row["state"] == "failed" else "FINISHED")
        study.set_user_attr(recorded, True)


def _row(trial: FrozenTrial) -> dict[str, Any]:
    outcome = attribute(trial, "outcome")
    values = trial.values or [None]
    value = values[0]
    return {
        "trial": trial.number,
        "key": trial_key(trial.number),
        "state": _STATES[trial.state.name],
        "reason": str(outcome.get("reason", "")),
        "params": dict(trial.params),
        "epochs": int(outcome.get("epochs", 0)),
        "value": float(value) if value is not None and math.isfinite(value) else None,
        "cost": outcome.get("cost"),
        "seconds": float(outcome.get("seconds", 0.0)),
        "started": trial.datetime_start,
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    names = ("trial", "value", "cost", "params", "epochs")
    return {name: row[name] for name in names if row[name] is not None}
