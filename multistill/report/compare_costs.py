"""What a model of a finished job costs, and what it is better at than the best linear probe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multistill.evaluation.figures import over_seeds
from multistill.report.differences import signed, stacked
from multistill.report.tables import Cell, Table
from multistill.report.terminal import cell, count, score

METRIC = "macro_f1"
"""Whose difference to the probe is in the tables; CSV and JSON have all."""
TITLE = "macro F1\nto probe"
ENDS = ("value", "low", "high", "p", "p_holm")
COSTS = ("params_trainable", "params_end_to_end", "train_seconds", "ms_per_clip")


def costs(model: Mapping[str, Any]) -> dict[str, float | None]:
    """What a model costs, None where unknown or not measured.

    Args:
        model: an entry of report.json.

    Returns:
        `params_trainable`; `params_end_to_end`, encoders included; `train_seconds` of one training,
        the mean over those behind the entry (folds, seeds, members), without what they start
        from; `ms_per_clip`, the median from the file to the answer.
    """
    seconds = [training.get("seconds") for training in model.get("training") or ()]
    return {
        "params_trainable": model.get("params_trainable"),
        "params_end_to_end": model.get("params_end_to_end"),
        "train_seconds": statistics.fmean(seconds) if seconds and None not in seconds else None,
        "ms_per_clip": (model.get("latency_end_to_end_ms") or {}).get("p50"),
    }


def concordance(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """CCC with its interval by model and dimension, of the dimensions of a report."""
    found: dict[str, dict[str, Any]] = {}
    for entry in report["dimensions"]:
        for model in (*entry["references"], *entry["models"]):
            found.setdefault(model["name"], {})[entry["dimension"]] = over_seeds(model, "ccc")
    return found


def to_best_probe(
    report: Mapping[str, Any], predictions: Path | None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Paired differences of the models of a job to its best linear probe, by metric.

    Controls are among them: each is its method without a teacher. P-values are adjusted for all
    of the job but those that learnt nothing, which are tested in no family. Empty without a
    probe, predictions, or one answer per clip.

    Args:
        predictions: predictions.parquet of the evaluation.
    """
    probe = report["floor"]["probe"]
    if probe is None or predictions is None:
        return {}
    from multistill.evaluation.comparisons import Scores, adjust
    from multistill.evaluation.paired import PairedScores, read_answers

    answers = read_answers(predictions)
    if probe not in answers.predicted or len(set(answers.ids)) < len(answers.ids):
        return {}
    unit = report["test"]["resampled"]["unit"]
    scores = PairedScores(answers, unit, report["resamples"], report["seed"], report["confidence"])

    def scored(model: Mapping[str, Any]) -> Scores:
        return scores.score(answers.predicted[model["name"]], model)

    [reference] = [scored(each) for each in report["references"] if each["name"] == probe]
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for model in report["models"]:
        if model["name"] in answers.predicted:
            measured = scores.differences(scored(model), reference)
            found[model["name"]] = {m: {**each, "p_holm": None} for m, each in measured.items()}
    family = [m["name"] for m in report["models"] if m["name"] in found and not m["not_trained"]]
    return found | dict(zip(family, adjust([found[name] for name in family]), strict=True))


def cost_table(facts: Mapping[str, Any], *, narrow: bool = False) -> Table:
    """The models with their CCC, costs and difference to the probe.

    Args:
        facts: of `compare`.
        narrow: intervals below their values, and both counts in one column, for 80 columns.
    """
    dimensions = dimensions_of(facts)
    figure, difference = (cell, stacked) if narrow else (score, signed)
    head = ["run", "model", TITLE, *(f"CCC\n{name}" for name in dimensions)]
    head += ["params"] if narrow else ["params\ntrained", "params\nend to end"]
    head += ["train\ns", "ms a\nclip"]
    rows: list[list[Cell]] = []
    for row in facts["models"]:
        to_probe = (row["to_probe"] or {METRIC: {}})[METRIC]
        found: list[Cell] = [row["run"], row["model"], difference(to_probe) if to_probe else "-"]
        found += [figure(row["ccc"][name]) if name in row["ccc"] else "-" for name in dimensions]
        cost = row["cost"]
        counts = [count(cost[name]) for name in ("params_trainable", "params_end_to_end")]
        found += ["\n".join(counts)] if narrow else counts
        found += [_rounded(cost["train_seconds"], 0), _rounded(cost["ms_per_clip"], 1)]
        rows.append(found)
    return Table(head, rows, frozenset(head[2:]))


def dimensions_of(facts: Mapping[str, Any]) -> list[str]:
    """Names of the dimensions that any of the models predicts."""
    return list(dict.fromkeys(name for row in facts["models"] for name in row["ccc"]))


def flat_titles(facts: Mapping[str, Any]) -> list[str]:
    """Columns of `flat_cells`."""
    ends = ("", "_low", "_high", "_p", "_p_holm")
    titles = [f"{metric}_to_probe{end}" for metric in _metrics(facts) for end in ends]
    dimensions = dimensions_of(facts)
    return [*titles, *(f"ccc_{name}{end}" for name in dimensions for end in ends[:3]), *COSTS]


def flat_cells(facts: Mapping[str, Any], row: Mapping[str, Any]) -> list[Cell]:
    """Figures of one model for CSV.

    Args:
        row: of `models` of the facts.
    """
    to_probe = row["to_probe"] or {}
    found = [to_probe.get(m, {}).get(end) for m in _metrics(facts) for end in ENDS]
    for name in dimensions_of(facts):
        found += [row["ccc"].get(name, {}).get(end) for end in ENDS[:3]]
    return [*found, *(row["cost"][name] for name in COSTS)]


def _metrics(facts: Mapping[str, Any]) -> list[str]:
    return list(facts["models"][0]["metrics"])


def _rounded(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
