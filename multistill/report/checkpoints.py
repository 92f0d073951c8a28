"""What `multistill evaluate --all` prints of `multistill.evaluation.checkpoints`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from multistill.report.pages import Block, Page, to_html
from multistill.report.tables import FORMATS, Cell, Format, Table
from multistill.report.terminal import cell, count, encoder, score
from multistill.wording import counted

PUBLISHED = {
    "loss": "loss",
    "accuracy": "accuracy",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "f1_sd": "F1 SD",
    "params": "parameters",
    "time": "time, s",
}
"""The columns of Multi-Still's result table."""
OURS = {"uar": "UAR", "macro_f1": "macro F1"}
NUMBERS = frozenset({*PUBLISHED.values(), *OURS.values()})
SEEN = "TRAINED ON THESE CLIPS"


def terminal_table(facts: Mapping[str, Any]) -> Table:
    """Models and majority, two figures below each other, which fits into 80 columns."""
    flat = _table(facts, cell)
    pairs, ours = [(1, 2), (3, 4), (5, 6), (7, 8)], (9, 10)
    columns = ["model", *("\n".join(flat.columns[i] for i in pair) for pair in pairs)]
    columns += [flat.columns[index] for index in ours]
    rows: list[list[Cell]] = [
        [row[0], *("\n".join(str(row[i]) for i in pair) for pair in pairs), row[9], row[10]]
        for row in flat.rows
    ]
    return Table(columns, rows, frozenset(columns[1:]))


def text(facts: Mapping[str, Any], kind: Format) -> str:
    """The result as a CSV table of all figures, as a table of Markdown or LaTeX, or as a page."""
    if kind == "html":
        return page(facts)
    if kind == "csv":
        return FORMATS[kind](_flat(facts))
    mark, between = ("% ", "") if kind == "latex" else ("", "\n")
    lines = [f"{mark}{line}\n" for line in notes(facts)]
    return "\n".join([FORMATS[kind](_table(facts, score)), between.join(lines)])


def page(facts: Mapping[str, Any]) -> str:
    """The result as an HTML page that opens offline."""
    test = facts["test"]
    blocks = [Block("Models", _table(facts, score))]
    if facts["refused"]:
        rows: list[list[Cell]] = [
            [refused["name"], refused["reason"], refused["folder"]] for refused in facts["refused"]
        ]
        blocks.append(Block("Not scored", Table(["model", "reason", "folder"], rows)))
    seen = [model["name"] for model in facts["models"] if model["known_clips"]]
    warnings = [(SEEN, f"{', '.join(seen)}: these scores are no test.")] if seen else []
    lead = (
        f"{counted(len(facts['models']), 'model')} on "
        f"{counted(test['decided'], 'labelled test clip')} of "
        f"{counted(test['speakers'], 'speaker')} in {counted(test['sessions'], 'session')} of the "
        f"job {facts['job']}; "
        f"{100 * facts['confidence']:g} % intervals in brackets."
    )
    lines = [line for line in notes(facts) if not line.startswith("not scored: ")]
    return to_html(Page(facts["source"], "multistill evaluate", lead, blocks, warnings, lines))


def notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """Sentences below the table."""
    test, fold = facts["test"], facts["fold"]
    yield (
        f"test clips of the job {facts['job']}{f', fold {fold}' if fold else ''}: "
        f"{test['decided']} labelled of {counted(test['speakers'], 'speaker')} in "
        f"{counted(test['sessions'], 'session')}; {100 * facts['confidence']:g} % intervals over "
        f"{counted(test['resampled']['count'], test['resampled']['unit'])}"
    )
    for model in facts["models"]:
        if model["known_clips"]:
            yield (
                f"{model['name']}: {SEEN}: {model['known_clips']} of {test['clips']} were in "
                "its training or validation part, so its row is no test"
            )
    unknown = [model["name"] for model in facts["models"] if model["known_clips"] is None]
    if unknown:
        yield f"nobody knows whether these were trained on the clips: {', '.join(unknown)}"
    yield (
        "loss is the negative log-likelihood of the label in nats; recall, precision and F1 are "
        "weighted by class, F1 SD is the deviation of F1 over the classes; time is of the heads "
        f"over all clips with the encoder states in memory, on {facts['device']}; parameters are "
        "of the head"
    )
    for kind, info in facts["encoders"].items():
        if info["trained"] is False:
            yield f"{kind} encoder: {encoder(info)}"
    for refused in facts["refused"]:
        yield f"not scored: {refused['name']}: {refused['reason']}"


def _table(facts: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], str]) -> Table:
    columns = ["model", *PUBLISHED.values(), *OURS.values()]
    baseline = facts["baseline"]
    rows: list[list[Cell]] = [_row(f"always {baseline['label']}", baseline, figure)]
    for model in facts["models"]:
        name = model["name"] + (f"\n{SEEN}" if model["known_clips"] else "")
        rows.append(_row(name, model, figure))
    return Table(columns, rows, NUMBERS)


def _row(
    name: str, model: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], str]
) -> list[Cell]:
    metrics, published = model["metrics"], model.get("published", {})
    parameters = count(model["params_trainable"]) if "params_trainable" in model else "0"
    seconds = model.get("inference_s")
    return [
        name,
        _number(metrics["nll"]["value"]),
        _number(metrics["accuracy"]["value"]),
        *(_number(published.get(key)) for key in ("recall", "precision", "f1", "f1_sd")),
        parameters,
        "-" if seconds is None else f"{seconds:.2f}",
        *(figure(metrics[metric]) for metric in OURS),
    ]


def _flat(facts: Mapping[str, Any]) -> Table:
    """A row per model, refused ones included, with all figures and bounds."""
    metrics = list(facts["baseline"]["metrics"])
    published = ["recall", "precision", "recall_sd", "f1_sd"]  # f1 is weighted_f1
    plain = ["params_trainable", "params_end_to_end", "inference_s", "known_clips"]
    columns = ["model", "folder", "mlflow_run_id", "role", "modality", "not_scored"]
    columns += [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    columns += [*(f"weighted_{name}" if "sd" not in name else name for name in published), *plain]
    columns += ["latency_ms_p50", "latency_ms_p95"]
    entries = [facts["baseline"] | {"role": "majority"}, *facts["models"], *facts["refused"]]
    rows: list[list[Cell]] = []
    for entry in entries:
        names = ("folder", "mlflow_run_id", "role", "modality", "reason")
        row: list[Cell] = [entry["name"], *(entry.get(name) for name in names)]
        for metric in metrics:
            found = entry.get("metrics", {}).get(metric, {})
            row += [found.get(key) for key in ("value", "low", "high")]
        row += [entry.get("published", {}).get(name) for name in published]
        row += [entry.get(name) for name in plain]
        row += [(entry.get("latency_ms") or {}).get(key) for key in ("p50", "p95")]
        rows.append(row)
    return Table(columns, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
