"""What a model of a finished job costs, and what it is better at than the best linear probe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multistill.evaluation.figures import over_seeds
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
    """Paired differences of the trained models of a job to its best linear probe, by metric.

    Controls are among them: each is its method without a teacher. P-values are adjusted for all
    of the job. Empty without a probe, predictions, or one answer per clip.

    Args:
        predictions: predictions.parquet of the evaluation.
    """
    probe = report["floor"]["probe"]
    if probe is None or predictions is None:
        return {}
    from multistill.evaluation.comparisons import adjust
    from multistill.evaluation.paired import PairedScores, read_answers

    answers = read_answers(predictions)
    trained = [m for m in report["models"] if m["name"] in answers.predicted]
    if probe not in answers.predicted or len(set(answers.ids)) < len(answers.ids):
        return {}
    unit = report["test"]["resampled"]["unit"]
    scores = PairedScores(answers, unit, report["resamples"], report["seed"], report["confidence"])
    [entry] = [each for each in report["references"] if each["name"] == probe]
    reference = scores.score(answers.predicted[probe], entry)
    rows = [
        scores.differences(scores.score(answers.predicted[each["name"]], each), reference)
        for each in trained
    ]
    return dict(zip([each["name"] for each in trained], adjust(rows), strict=True))


def cost_table(facts: Mapping[str, Any], *, stacked: bool = False) -> Table:
    """The models with their CCC, costs and difference to the probe.

    Args:
        facts: of `compare`.
        stacked: intervals below their values, and both counts in one column, for 80 columns.
    """
    dimensions = dimensions_of(facts)
    figure = cell if stacked else score
    head = ["run", "model", TITLE, *(f"CCC\n{name}" for name in dimensions)]
    head += ["params"] if stacked else ["params\ntrained", "params\nend to end"]
    head += ["train\ns", "ms a\nclip"]
    rows: list[list[Cell]] = []
    for row in facts["models"]:
        difference = (row["to_probe"] or {}).get(METRIC)
        found: list[Cell] = [row["run"], row["model"], _signed(difference, stacked)]
        found += [figure(row["ccc"][name]) if name in row["ccc"] else "-" for name in dimensions]
        cost = row["cost"]
        counts = [count(cost[name]) for name in ("params_trainable", "params_end_to_end")]
        found += ["\n".join(counts)] if stacked else counts
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
    differences = row["to_probe"] or {}
    found = [differences.get(m, {}).get(end) for m in _metrics(facts) for end in ENDS]
    for name in dimensions_of(facts):
        found += [row["ccc"].get(name, {}).get(end) for end in ENDS[:3]]
    return [*found, *(row["cost"][name] for name in COSTS)]


def _metrics(facts: Mapping[str, Any]) -> list[str]:
    return list(facts["models"][0]["metrics"])


def _signed(difference: Mapping[str, float | None] | None, stacked: bool) -> str:
    if difference is None or difference["value"] is None:
        return "-"
    text = f"{round(difference['value'], 3) + 0.0:+.3f}"
    low, high, p = (difference[name] for name in ("low", "high", "p_holm"))
    if low is not None and high is not None:
        text += f"\n{low:+.2f}…{high:+.2f}" if stacked else f" [{low:+.3f}, {high:+.3f}]"
    if p is not None:
        between = "\n" if stacked else ", "
        text += f"{between}p {p:.3f}" if p >= 0.001 else f"{between}p < .001"
    return text


def _rounded(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
