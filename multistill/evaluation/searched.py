"""What the search left behind, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        "winner": summary.get("winner"),
    }


def trials(folder: Path) -> list[dict[str, Any]]:
    """Every trial with its parameters, in order of its number."""
    found = pq.read_table(folder / TRIALS).drop_columns(["key", "started"]).to_pylist()
    return [{**row, "params": json.loads(row["params"])} for row in found]
