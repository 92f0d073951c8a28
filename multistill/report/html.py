"""Render report.html from the packaged template, the report and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from multistill.config import JobConfig
from multistill.evaluation.figures import METRIC_TITLES
from multistill.report import plots
from multistill.report.cell_labels import label_cells
from multistill.report.cost import accuracy_by_cost
from multistill.report.dimensions import dimension_rows
from multistill.report.environment import environment
from multistill.report.label_shares import gain_by_label_share
from multistill.report.layer_probes import by_layer
from multistill.report.playback import Playback
from multistill.report.protocol import over_folds
from multistill.report.robustness import heat_map
from multistill.report.selective import risk_over_coverage
from multistill.report.speakers import over_speakers

MAX_LISTED_TRIALS = 20


def render(
    report: Mapping[str, Any],
    *,
    trials: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    quality: Mapping[str, Any] | None,
    job: JobConfig,
    playback: Playback | None = None,
) -> str:
    """The page as one string, without references to external resources."""
    template = environment().get_template("report.html")
    page = template.render(
        report=report,
        job=job,
        shown_metric=job.teacher.train.metric or job.tasks.metric,
        resolved=yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        classes=_present_classes(report, quality),
        metric_titles=METRIC_TITLES,
        quality=quality,
        figures=_figures(report, trials, histories, quality, job),
        slices=_slices(report),
        dimension_rows=dimension_rows(report["dimensions"]),
        playback=playback,
        best_trials=_best_trials(trials, report["search"]),
    )
    return label_cells(page)


def _present_classes(
    report: Mapping[str, Any], quality: Mapping[str, Any] | None
) -> list[tuple[int, str]]:
    """Index and name of the classes that occur in the corpus or in a prediction."""
    counts = list(report["corpus"]["class_counts"].values())
    if quality:
        counts.append(quality["balance"]["before"]["counts"])
    models = [*report["models"], *report["references"]]
    return [
        (index, label)
        for index, label in enumerate(report["classes"])
        if any(count[label] for count in counts)
        or any(row[index] for model in models for row in model["confusion"])
    ]


def _figures(
    report: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    quality: Mapping[str, Any] | None,
    job: JobConfig,
) -> dict[str, Markup | None]:
    confidence = report["confidence"]
    shown_metric = job.teacher.train.metric or job.tasks.metric
    models = [*report["references"], *report["models"]]
    figures = {"curves": _two_widths(plots.curves, histories, shown_metric)}
    if report["classes"]:
        baseline, human = report["baseline"], report["human_ceiling"]
        people = [] if human["reason"] else [{**human, "role": "human"}]
        layers, references = report["layers"], report["references"]
        figures |= {
            "results": _two_widths(plots.results, baseline, [*models, *people], confidence),
            "cost": _two_widths(accuracy_by_cost, models, baseline, confidence),
            "folds": _two_widths(over_folds, baseline, models),
            "differences": _two_widths(plots.differences, report["distillation"], confidence),
            "label_shares": _two_widths(gain_by_label_share, report["label_shares"], confidence),
            "layers": _two_widths(by_layer, layers, references, baseline, confidence),
            "robustness": _two_widths(heat_map, report["robustness"]),
            "selective": _two_widths(risk_over_coverage, models),
            "speakers": _two_widths(over_speakers, baseline, models),
            "reliability": _two_widths(plots.reliability, report["models"]),
            "classes": _two_widths(plots.classes, _class_shares(report, quality)),
        }
    if quality:
        figures["durations"] = plots.histogram(
            "durations", "duration, seconds", **quality["duration"]["histogram"]
        )
    if quality and quality["raters"]:
        figures["entropy"] = plots.histogram(
            "entropy", "vote entropy, bits", **quality["raters"]["entropy_bits"]["histogram"]
        )
    search = report["search"]
    if search:
        best = search["best"]["params"] if search["best"] else {}
        figures |= {
            "txw": plots.temperature_weight(trials, job.search.metric, best),
            "history": plots.search_history(trials, job.search.metric),
            "importance": plots.importance(search.get("importance") or {}),
            "pareto": plots.pareto(trials, search.get("pareto") or [], job.search),
        }
    # The SVG is generated here, and matplotlib escapes every text in it.
    return {name: Markup(svg) if svg else None for name, svg in figures.items()}  # noqa: S704


def _two_widths(draw: Callable[..., str | None], *arguments: Any) -> str | None:
    """A figure as wide as the page, and one for narrow screens; the style sheet shows one."""
    wide, narrow = draw(*arguments), draw(*arguments, narrow=True)
    if wide is None or narrow is None:
        return None
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _class_shares(
    report: Mapping[str, Any], quality: Mapping[str, Any] | None
) -> dict[str, Mapping[str, float]]:
    """Class shares of the splits, and of training before class caps if there were any."""
    splits = {
        name: shares for name, shares in report["corpus"]["class_shares"].items() if name != "all"
    }
    if not quality or not quality["balance"]["caps"]:
        return splits
    counts = quality["balance"]["before"]["counts"]
    classes = report["classes"]
    total = sum(counts[label] for label in classes)
    return {"train before caps": {label: counts[label] / total for label in classes}, **splits}


def _slices(report: Mapping[str, Any]) -> dict[str, Any]:
    """The slices as a table: `columns` are model names, `groups` are rows by kind of slice."""
    if not report["classes"]:
        return {"columns": [], "groups": {}}
    scored = report["models"] or report["references"]
    shown = [model for model in scored if model["role"] != "control"]
    baseline = report["baseline"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for index, part in enumerate(baseline["slices"]):
        scores = [model["slices"][index]["metrics"]["uar"] for model in (baseline, *shown)]
        row = {**part, "scores": scores}
        groups.setdefault(part["by"], []).append(row)
    columns = [f"always {baseline['label']}", *(model["name"] for model in shown)]
    return {"columns": columns, "groups": groups}


def _best_trials(
    trials: Sequence[Mapping[str, Any]], search: Mapping[str, Any] | None
) -> list[Mapping[str, Any]]:
    """The best trials, complete ones first, in the order of the search."""
    if not search:
        return []
    sign = 1.0 if search["mode"] == "min" else -1.0
    valued = [trial for trial in trials if trial["value"] is not None]
    ranked = sorted(
        valued,
        key=lambda trial: (trial["state"] != "complete", sign * trial["value"], trial["trial"]),
    )
    return ranked[:MAX_LISTED_TRIALS]
