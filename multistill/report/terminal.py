"""The result table that is printed in the terminal, and number formats shared with the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multistill.evaluation.figures import DIMENSION_TITLES, over_seeds
from multistill.report.dimensions import dimension_lines
from multistill.report.label_shares import lines as label_share_lines
from multistill.report.pretraining import pretraining_lines
from multistill.report.repetitions import repetition_lines
from multistill.report.robustness import lines as robustness_lines
from multistill.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

METRIC_COLUMNS = {"uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted\nF1"}


def score(metric: Mapping[str, float | None]) -> str:
    """`0.612 [0.550, 0.671]`, or a dash if the metric is not defined."""
    value, low, high = metric.get("value"), metric.get("low"), metric.get("high")
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def count(parameters: int | None) -> str:
    """`15.8 M`, `412 k`, `8.8 k`, `907`; a dash if unknown."""
    if parameters is None:
        return "-"
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if parameters >= scale:
            scaled = parameters / scale
            return f"{scaled:.1f} {unit}" if scaled < 100 else f"{scaled:.0f} {unit}"
    return str(parameters)


def encoder(info: Mapping[str, Any]) -> str:
    """An encoder's name; a stand-in with random weights is labelled as untrained."""
    name, trained = str(info["name"]), info["trained"]
    if trained is None:
        return f"{name} (a fixed transform, no weights)"
    return name if trained else f"{name} (untrained stand-in)"


def encoders_read(report: Mapping[str, Any]) -> list[str]:
    """`speech` and `text`, as far as a scored model reads their states.

    Args:
        report: or metrics.json.
    """
    scored = (*report["references"], *report["models"])
    modalities = {entry["modality"] for entry in scored} or {"multimodal"}
    return [name for name, other in (("speech", "text"), ("text", "audio")) if modalities - {other}]


def describe_encoders(report: Mapping[str, Any]) -> str:
    """`speech log-mel, text use-multilingual`: those that a scored model reads."""
    encoders = report["encoders"]
    return ", ".join(f"{name} {encoder(encoders[name])}" for name in encoders_read(report))


def table(report: Mapping[str, Any]) -> Table:
    """A rich table of report.json: one row per model, the majority baseline first.

    Above it stands whether teacher and student beat the best probe and the majority. The caption
    lists the encoders, the split, what the parts and trainings lack, the verdicts on distillation
    and the best trial.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    warnings = [warning["title"] for warning in report["warnings"]]
    results = Table(
        title="\n".join([report["floor"]["sentence"], "  ".join([str(report["job"]), *warnings])]),
        caption="\n".join(_caption(report)),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    results.add_column("model", overflow="fold")
    results.add_column("modality", no_wrap=True)
    metrics = METRIC_COLUMNS if report["classes"] else DIMENSION_TITLES
    for title in metrics.values():
        results.add_column(title, justify="right", no_wrap=True)
    results.add_column("params\nend to end", justify="right", no_wrap=True)
    baseline = report["baseline"]
    results.add_row(
        *((f"always {baseline['label']}", "majority") if report["classes"] else ("mean", "-")),
        *(cell(baseline["metrics"][name]) for name in metrics),
        "-",
        style="dim",
    )
    for model in (*report["references"], *report["models"]):
        results.add_row(
            f"{model['name']}{_note(model)}",
            str(model["modality"]),
            *(cell(over_seeds(model, name)) for name in metrics),
            f"{count(model['params_trainable'])}\n{count(model['params_end_to_end'])}",
            style={"student": "bold", "probe": "dim", "reference": "dim"}.get(model["role"]),
        )
    human = report["human_ceiling"]
    if human["reason"] is None:
        figures = (cell(human["metrics"][name]) for name in METRIC_COLUMNS)
        results.add_row(human["name"], "human", *figures, "-", style="dim")
    return results


def _note(model: Mapping[str, Any]) -> str:
    """What stands below a model's name: seeds, unused parameters, whether it learnt anything."""
    seeds = f"\n{model['seeds']['count']} seeds" if model.get("seeds") else ""
    unused = f"\n{count(model['params_unused'])} unused" if model.get("params_unused") else ""
    return seeds + unused + ("\nNOT TRAINED" if model.get("not_trained") else "")


def cell(metric: Mapping[str, float | None]) -> str:
    """The value above its interval and SD over seeds, so that the table fits into 80 columns."""
    value, low, high, sd = (metric.get(key) for key in ("value", "low", "high", "sd"))
    if value is None or low is None or high is None:
        return score(metric)
    spread = "" if sd is None else f"\nSD {sd:.3f}"
    return f"{value:.3f}\n{low:.2f}–{high:.2f}{spread}"


def _caption(report: Mapping[str, Any]) -> list[str]:
    """The lines below the table: encoders, test set, verdicts and the best trial."""
    test = report["test"]
    resampled = test["resampled"]
    lines = [
        f"encoders: {describe_encoders(report)}",
        f"{counted(test['decided'], 'test clip')} of {counted(test['speakers'], 'speaker')}; "
        f"{100 * report['confidence']:.0f} % intervals over "
        + counted(
            resampled["count"], "clip" if resampled["unit"] == "utterance" else resampled["unit"]
        ),
        f"{report['protocol']['short']} (split.seed {report['split']['seed']}), trainings from "
        f"seed {report['seed']}",
        *(
            f"{warning['title']}: {warning['text']}"
            for warning in report["warnings"]
            if warning["kind"]
            in ("not-trained", "encoder-data", "one-group", "few-clips", "search-first-fold")
            or warning["kind"].startswith("classes-")
        ),
        *(comparison["sentence"] for comparison in report["distillation"]),
        *dimension_lines(report["dimensions"]),
        *pretraining_lines(report["pretraining"]),
        *label_share_lines(report["label_shares"], report["confidence"]),
        *robustness_lines(report["robustness"]),
        *repetition_lines(report),
    ]
    search = report["search"]
    if search and search["best"]:
        parameters = ", ".join(
            f"{name.rpartition('.')[2].replace('_', ' ')} "
            + (f"{value:.3g}" if isinstance(value, float) else str(value))
            for name, value in search["best"]["params"].items()
        )
        lines.append(
            f"search: best of {counted(search['trials'], 'trial')} has {parameters} "
            f"({search['metric'].replace('_', ' ')} {search['best']['value']:.3f})"
        )
    return lines
