"""What the search left behind, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from multistill.config import JobConfig
from multistill.workspace import read_json

STUDY = "study.json"
TRIALS = "trials.parquet"


def facts(folder: Path, summary: Mapping[str, Any], job: JobConfig) -> dict[str, Any]:
    """study.json with what the job asked for and which retrained model won on validation."""
    study: dict[str, Any] = read_json(folder / STUDY)
    space = {
        name: parameter.model_dump(exclude_none=True, exclude_defaults=True)
        for name, parameter in job.search.space.items()
    }
    return {
        **study,
        "trials": study["trials"],
        "best": study["best"],
        "study": study["study"],
        "student": job.searched_student().name,
        "space": space,
        **{name: summary[name] for name in ("winner", "finalists", "control")},
    }


def over_seeds(search: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several seeds showed: a line per retrained trial and one for the control.

    Returns:
        `count` of seeds and `lines` of `name`, `params`, `valid` and `test` (the winner's and
        its control's; null for others), both with `values`, `mean` and `sd`.
    """
    name = f"{search['student']}-search"
    by_name = {model["name"]: model for model in models}
    control = by_name.get(name, {}).get("compare_to")
    metric = search["metric"].removeprefix("valid_")

    def line(found: Mapping[str, Any], shown: str | None) -> dict[str, Any]:
        seeds = by_name.get(shown or "", {}).get("seeds")
        test = seeds["metrics"].get(metric) if seeds else None
        return {
            "name": found["name"],
            "winner": found["name"] == search["winner"],
            "params": found.get("params", {}),
            "valid": {key: found[key] for key in ("values", "mean", "sd")},
            "test": {**test, "mean": test["value"]} if test else None,
        }

    lines = [
        line(found, name if found["name"] == search["winner"] else None)
        for found in search["finalists"]
    ]
    lines.append(line(search["control"], control))
    return {"count": len(search["control"]["seeds"]), "lines": lines}


def trials(folder: Path) -> list[dict[str, Any]]:
    """Every trial with its parameters, in order of its number."""
    found = pq.read_table(folder / TRIALS).drop_columns(["key", "started"]).to_pylist()
    return [{**row, "params": json.loads(row["params"])} for row in found]
