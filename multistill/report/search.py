"""Results of the search stage, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from multistill.config import JobConfig
from multistill.search.results import STUDY, TRIALS
from multistill.workspace import read_json


def describe_search(folder: Path, summary: Mapping[str, Any], job: JobConfig) -> dict[str, Any]:
    """study.json, with the search space of the job and the retrained models.

    Args:
        folder: of the search artifact.
        summary: of the search artifact: `winner`, `finalists`, `control`.
    """
    study: dict[str, Any] = read_json(folder / STUDY)
    space = {
        name: parameter.model_dump(exclude_none=True, exclude_defaults=True)
        for name, parameter in job.search.space.items()
    }
    return {
        **study,
        "student": job.searched_student().name,
        "space": space,
        **{name: summary[name] for name in ("winner", "finalists", "control")},
    }


def scores_over_seeds(
    search: Mapping[str, Any], models: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Validation and test scores over seeds, per retrained trial and for the control.

    Returns:
        `count` of seeds and `lines` of `name`, `params`, `valid` and `test` (only of the winner
        and its control; null for others), both with `values`, `mean` and `sd`.
    """
    searched_name = f"{search['student']}-search"
    by_name = {model["name"]: model for model in models}
    control_name = by_name.get(searched_name, {}).get("compare_to")
    metric = search["metric"].removeprefix("valid_")

    def row(retrained: Mapping[str, Any], model_name: str | None) -> dict[str, Any]:
        seeds = by_name.get(model_name or "", {}).get("seeds")
        test = seeds["metrics"].get(metric) if seeds else None
        return {
            "name": retrained["name"],
            "winner": retrained["name"] == search["winner"],
            "params": retrained.get("params", {}),
            "valid": {key: retrained[key] for key in ("values", "mean", "sd")},
            "test": {**test, "mean": test["value"]} if test else None,
        }

    rows = [
        row(finalist, searched_name if finalist["name"] == search["winner"] else None)
        for finalist in search["finalists"]
    ]
    rows.append(row(search["control"], control_name))
    return {"count": len(search["control"]["seeds"]), "lines": rows}


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Every trial with its parameters, in order of its number."""
    rows = pq.read_table(folder / TRIALS).drop_columns(["key", "started"]).to_pylist()
    return [{**row, "params": json.loads(row["params"])} for row in rows]
