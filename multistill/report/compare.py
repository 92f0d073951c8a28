"""Several finished jobs side by side: figures of all models, and paired differences of the same.

Every model has its costs too, and its difference to the best linear probe of its own job.

Differences are taken where two jobs were tested on the same clips with the same labels. On other
clips a figure says as much about the clips as about the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.errors import UsageError
from multistill.evaluation.figures import over_seeds
from multistill.report.compare_costs import concordance, costs, to_best_probe

if TYPE_CHECKING:
    from multistill.evaluation.paired import Answers, PairedScores

METRICS = ("uar", "macro_f1", "weighted_f1", "accuracy")
SHORT = 6
"""Digits of a fingerprint that are shown."""
CANNOT = "figures on other clips or labels cannot be set side by side"


@dataclass(frozen=True)
class Run:
    """A finished job.

    Attributes:
        key: fingerprint of the job; None for a report outside its workspace.
        folder: of the report.
        report: content of report.json.
        settings: what decides the job's results, by dotted key.
        predictions: predictions.parquet of the evaluation, None if it is gone.
    """

    job: str
    key: str | None
    folder: Path
    report: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    predictions: Path | None = None

    @property
    def best_student(self) -> str | None:
        student = self.report["floor"]["student"]
        return None if student is None else str(student)


def compare(runs: Sequence[Run], differing: Sequence[str] = ()) -> dict[str, Any]:
    """Figures of all runs, and differences of every other run to the first.

    Args:
        differing: keys of the runs' settings that are not the same in all.

    Returns:
        JSON values: `runs` (with `probe`, the best), `classes`, `models` (a row per run and
        model, with `ccc` by dimension, `to_probe` and `cost`), `differences` (a row
        per other run and model of the same name, and one for the best students), `resampled`
        (`unit` and `count` behind the differences), `family` (number of pairs tested, which every
        `p_holm` of a difference is adjusted for), `not_paired` (sentences: which run has no
        differences, and why), `warnings` (sentences by run: it was tested by another protocol
        than the first) and `settings`.

    Raises:
        UsageError: the runs tell apart other classes.
    """
    names = labels(runs)
    _check_classes(names, runs)
    result: dict[str, Any] = {
        "runs": [_describe(name, run) for name, run in zip(names, runs, strict=True)],
        "classes": list(runs[0].report["classes"]),
        "models": [row for name, run in zip(names, runs, strict=True) for row in _rows(name, run)],
        "differences": [],
        "resampled": None,
        "family": 0,
        "not_paired": [],
        "warnings": _other_protocols(names, runs),
        "settings": [
            {"setting": key, "values": [run.settings.get(key) for run in runs]}
            for key in differing
            if key != "name"  # it stands in the head
        ],
    }
    return result | _pair(names, runs)


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its job's, with the fingerprint's start where jobs share it."""
    jobs = Counter(run.job for run in runs)
    keys = {run.key for run in runs if run.key}
    length = SHORT
    while len({key[:length] for key in keys}) < len(keys):
        length += 1
    found: list[str] = []
    for run in runs:
        name = f"{run.job}@{run.key[:length]}" if jobs[run.job] > 1 and run.key else run.job
        number, label = 1, name
        while label in found:
            number += 1
            label = f"{name} ({number})"
        found.append(label)
    return found


def models_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of report.json with `role`: the majority baseline, the probes, the models."""
    baseline = {"role": "majority", **report["baseline"]}
    return [baseline, *report["references"], *report["models"]]


def _other_protocols(names: Sequence[str], runs: Sequence[Run]) -> dict[str, str]:
    """A warning for every run whose protocol is not that of the first."""
    first = runs[0].report["protocol"]["short"]
    return {
        name: f"ANOTHER PROTOCOL: `{name}` was tested by {short}, `{names[0]}` by {first}; their "
        "models were trained on other parts of the clips, so a difference is not of the settings "
        "alone"
        for name, run in zip(names, runs, strict=True)
        if (short := run.report["protocol"]["short"]) != first
    }


def _describe(name: str, run: Run) -> dict[str, Any]:
    report = run.report
    return {
        "run": name,
        "job": run.job,
        "variant": run.key,
        "report": str(run.folder),
        "created": report["created"],
        "protocol": report["protocol"],
        "test": {key: report["test"][key] for key in ("clips", "speakers", "sessions")},
        "confidence": report["confidence"],
        "best_student": run.best_student,
        "probe": report["floor"]["probe"],
        "warnings": [warning["title"] for warning in report["warnings"]],
    }


def _rows(name: str, run: Run) -> list[dict[str, Any]]:
    keys = ("value", "low", "high", "sd")
    ccc, to_probe = concordance(run.report), to_best_probe(run.report, run.predictions)
    return [
        {
            "run": name,
            "model": model["name"],
            "role": model["role"],
            "seeds": (model.get("seeds") or {}).get("count", 1),
            "not_trained": model.get("not_trained"),
            "metrics": {
                metric: {key: over_seeds(model, metric).get(key) for key in keys}
                for metric in METRICS
            },
            "ccc": ccc.get(model["name"], {}),
            "to_probe": to_probe.get(model["name"]),
            "cost": costs(model),
        }
        for model in models_of(run.report)
    ]


def _check_classes(names: Sequence[str], runs: Sequence[Run]) -> None:
    for name, run in zip(names, runs, strict=True):
        if not run.report["classes"]:
            raise UsageError(
                f"`{name}` has dimensions and no classes, and what is compared are figures of "
                f"classes; the CCC of its models is in {run.folder}"
            )
    first = set(runs[0].report["classes"])
    for name, run in zip(names[1:], runs[1:], strict=True):
        other = set(run.report["classes"])
        if other != first:
            only = [
                f"only `{label}` has {', '.join(sorted(more))}"
                for label, more in ((names[0], first - other), (name, other - first))
                if more
            ]
            raise UsageError(
                f"`{name}` tells apart other classes than `{names[0]}` ({'; '.join(only)}), so "
                "their figures mean different things; compare jobs of the same `labels`"
            )


def _pair(names: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    """`differences`, `resampled` and `not_paired`."""
    if len(runs) < 2:
        return {}
    without = [name for name, run in zip(names, runs, strict=True) if run.predictions is None]
    if names[0] in without:
        return {"not_paired": [f"no differences: the predictions of `{names[0]}` are gone"]}
    from multistill.evaluation.paired import PairedScores, read_answers, why_not_paired

    answers = {
        name: read_answers(run.predictions)
        for name, run in zip(names, runs, strict=True)
        if run.predictions is not None
    }
    first = answers[names[0]]
    paired, sentences = [(names[0], runs[0])], []
    for name, run in zip(names[1:], runs[1:], strict=True):
        if name in without:
            sentences.append(f"no differences of `{name}`: its predictions are gone")
        elif reason := why_not_paired(first, answers[name]):
            sentences.append(f"no differences of `{name}`: {reason}; {CANNOT}")
        else:
            paired.append((name, run))
    if len(paired) < 2:
        return {"not_paired": sentences}
    # The coarsest unit of all: jobs may have split the same test clips by other keys.
    units = [run.report["test"]["resampled"]["unit"] for _, run in paired]
    unit = min(units, key=lambda unit: first.clusters[unit].count)
    report = runs[0].report
    scores = PairedScores(first, unit, report["resamples"], report["seed"], report["confidence"])
    rows = [row for other in paired[1:] for row in _differences(paired[0], other, answers, scores)]
    resampled = {"unit": unit, "count": scores.clusters.count, "confidence": scores.confidence}
    return {
        "differences": _one_family(rows),
        "resampled": resampled,
        "not_paired": sentences,
        "family": _tests(rows),
    }


def _one_family(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p-values adjusted for all of them, by metric.

    The best students may be a pair that has a row of its own: it is one test.
    """
    from multistill.evaluation.comparisons import adjust

    pairs = {_pair_of(row): row["metrics"] for row in rows}
    adjusted = dict(zip(pairs, adjust(list(pairs.values())), strict=True))
    return [row | {"metrics": adjusted[_pair_of(row)]} for row in rows]


def _tests(rows: Sequence[Mapping[str, Any]]) -> int:
    """Number of pairs that are tested; a model that two runs share is not."""
    tested = {_pair_of(r) for r in rows if r["metrics"][METRICS[0]]["p"] is not None}
    return len(tested)


def _pair_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return (str(row["run"]), str(row["model"]), str(row["against"]))


def _differences(
    first: tuple[str, Run],
    other: tuple[str, Run],
    answers: Mapping[str, Answers],
    scores: PairedScores,
) -> list[dict[str, Any]]:
    """Other minus first: the best students, then every model and probe of the same name."""
    (first_name, first_run), (name, run) = first, other
    ours = {model["name"]: model for model in models_of(first_run.report)}
    theirs = {model["name"]: model for model in models_of(run.report)}
    pairs = [
        (model, model, entry["role"])
        for model, entry in theirs.items()
        if model in ours and entry["role"] != "majority"
    ]
    if run.best_student and first_run.best_student:
        pairs.insert(0, (run.best_student, first_run.best_student, "best student"))
    return [
        {
            "run": name,
            "model": model,
            "role": role,
            "against_run": first_name,
            "against": against,
            "metrics": scores.differences(
                scores.score(answers[name].predicted[model], theirs[model]),
                scores.score(answers[first_name].predicted[against], ours[against]),
            ),
        }
        for model, against, role in pairs
    ]
