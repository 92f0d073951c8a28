"""The result table of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {"uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted\nF1"}


def score(metric: Mapping[str, float | None]) -> str:
    """`0.612 [0.550, 0.671]`, or a dash where the metric is not defined."""
    value, low, high = metric.get("value"), metric.get("low"), metric.get("high")
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def count(parameters: int | None) -> str:
    """`15.8 M`, `412 k`, `8.8 k`, `907`; a dash where it is not known."""
    if parameters is None:
        return "-"
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if parameters >= scale:
            figure = parameters / scale
            return f"{figure:.1f} {letter}" if figure < 100 else f"{figure:.0f} {letter}"
    return str(parameters)


def encoder(facts: Mapping[str, Any]) -> str:
    """An encoder's name; a stand-in with random weights is called untrained wherever shown."""
    name, trained = str(facts["name"]), facts["trained"]
    if trained is None:
        return f"{name} (a fixed transform, no weights)"
    return name if trained else f"{name} (untrained stand-in)"


def table(report: Mapping[str, Any]) -> Table:
    """A rich table of report.json: one line a model, the majority baseline first.

    Below it stand the encoders, the verdicts on distillation and what the search found.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    warnings = [warning["title"] for warning in report["warnings"]]
    found = Table(
        title="  ".join([str(report["job"]), *warnings]),
        caption="\n".join(_lines(report)),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    found.add_column("model", overflow="fold")
    found.add_column("modality", no_wrap=True)
    for title in SHOWN.values():
        found.add_column(title, justify="right", no_wrap=True)
    found.add_column("params\nend to end", justify="right", no_wrap=True)
    baseline = report["baseline"]
    found.add_row(
        f"always {baseline['label']}",
        "majority",
        *(_cell(baseline["metrics"][name]) for name in SHOWN),
        "-",
        style="dim",
    )
    for model in (*report["references"], *report["models"]):
        found.add_row(
            str(model["name"]),
            str(model["modality"]),
            *(_cell(model["metrics"][name]) for name in SHOWN),
            f"{count(model['params_trainable'])}\n{count(model['params_end_to_end'])}",
            style={"student": "bold", "probe": "dim"}.get(model["role"]),
        )
    return found


def _cell(metric: Mapping[str, float | None]) -> str:
    """The value above its interval: narrow enough for a log of 80 columns."""
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None or low is None or high is None:
        return score(metric)
    return f"{value:.3f}\n{low:.2f}–{high:.2f}"


def _lines(report: Mapping[str, Any]) -> list[str]:
    """What stands below the table: encoders, test set, verdicts, what the search found."""
    encoders, test = report["encoders"], report["test"]
    resampled = test["resampled"]
    found = [
        f"speech: {encoder(encoders['speech'])}; text: {encoder(encoders['text'])}",
        f"{test['decided']} test clips of {test['speakers']} speakers; "
        f"{100 * report['confidence']:.0f} % intervals over {resampled['count']} "
        f"{resampled['unit']}s",
        *(line["sentence"] for line in report["distillation"]),
    ]
    search = report["search"]
    if search and search["best"]:
        values = ", ".join(
            f"{name.rpartition('.')[2].replace('_', ' ')} "
            + (f"{value:.3g}" if isinstance(value, float) else str(value))
            for name, value in search["best"]["params"].items()
        )
        found.append(
            f"search: best of {search['trials']} trials has {values} "
            f"({search['metric'].replace('_', ' ')} {search['best']['value']:.3f})"
        )
    return found
