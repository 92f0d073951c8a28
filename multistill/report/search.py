"""Results of the search stage, for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.config import JobConfig
from multistill.damaged import read_table, reading
from multistill.search.finalists import winner_of
from multistill.search.results import STUDY, TRIALS
from multistill.workspace import Artifact, fold_folder, read_json


def describe_search(search: Artifact, job: JobConfig) -> dict[str, Any]:
    """study.json, with the search space of the job and the retrained models.

    Args:
        search: its summary has `winner`, `finalists` and `control`, or per fold if every fold was
            searched. Then study and finalists are those of the first fold, and `chosen` has the
            winner of every fold: `params`, `mean`, `sd`, `trials`.
    """
    study: dict[str, Any] = read_json(study_folder(search) / STUDY)
    folds = search.summary.get("folds", [])
    nested = "winner" not in search.summary
    summary = folds[0] if nested else search.summary
    space = {
        name: parameter.model_dump(exclude_none=True, exclude_defaults=True)
        for name, parameter in job.search.space.items()
    }
    return {
        **study,
        "student": job.searched_student().name,
        "space": space,
        "chosen": [_chosen(fold) for fold in folds] if nested else [],
        **{name: summary[name] for name in ("winner", "finalists", "control")},
    }


def study_folder(search: Artifact) -> Path:
    """Folder of the study; under cross-validation that of the first fold."""
    return fold_folder(search.path, 0) if "folds" in search.summary else search.path


def _chosen(fold: Mapping[str, Any]) -> dict[str, Any]:
    winner = winner_of(fold)
    return {"trials": fold["trials"], **{name: winner[name] for name in ("params", "mean", "sd")}}


def search_on_first_fold(
    metrics: Mapping[str, Any], job: JobConfig
) -> Iterator[tuple[str, str, str]]:
    """The warning that settings were chosen on clips that other folds test.

    Nothing that is trained knows a test clip, but the settings do: selection bias (Varma and
    Simon 2006; Cawley and Talbot, JMLR 11, 2010, section 5).

    Args:
        metrics: content of metrics.json.
    """
    folds = metrics["folds"]
    if not (folds and job.search.enabled) or job.search.nested:
        return
    first, name = folds[0], f"{job.searched_student().name}-search"
    metric = "uar" if metrics["classes"] else "ccc"
    own = [m["folds"][metric]["values"][0] for m in metrics["models"] if m["name"] == name]
    known = own and own[0] is not None
    alone = f" (there the {metric.upper()} of {name} is {own[0]:.3f})" if known else ""
    yield (
        "search-first-fold",
        "SEARCH ON THE FIRST FOLD",
        f"The settings of {name} and its control were chosen once, by training on the "
        f"{first['train']} training clips of fold {first['name']} and ranking on its "
        f"{first['valid']} validation clips. The other folds test these clips: no model "
        "was trained on a clip that it is tested on, but its settings were chosen with the labels "
        "of such clips, so the scores of these two over all folds may be too good. Only the "
        f"{first['clips']} test clips of fold {first['name']} played no part{alone}. All other "
        "models are unaffected. `search.nested: true` searches in every fold.",
    )


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
    table = read_table(folder / TRIALS)
    with reading(folder / TRIALS):
        rows = table.drop_columns(["key", "started"]).to_pylist()
        return [{**row, "params": json.loads(row["params"])} for row in rows]
