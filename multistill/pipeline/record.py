"""What the top-level MLflow run of a job shows: few parameters, main figures, a description."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from multistill.config import JobConfig
from multistill.evaluation.figures import over_seeds
from multistill.pipeline.step import Artifacts, Step
from multistill.tracking.console import CompositeLogger
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.tracking.recorded import FIGURE

NOTE_TAG = "mlflow.note.content"
MAIN_METRICS = {"macro_f1": "macro F1", "uar": "UAR"}
DIMENSION_METRICS = {"ccc": "CCC", "rmse": "RMSE"}
"""In place of the main metrics for a job without classes."""
FIGURES = {"value": "", "low": "_low", "high": "_high", "sd": "_sd"}
"""What is recorded of a metric, and what its name then ends with."""


def label(key: str) -> str:
    """Short name of a run, which tells its runs from those of other jobs: `3f9a1c`."""
    return key[:6]


def run_name(job: JobConfig, key: str) -> str:
    """Name of the top-level run: `emodb seed 1024 (3f9a1c)`."""
    return f"{job.name} seed {job.seed} ({label(key)})"


def parameters(job: JobConfig, steps: Sequence[Step]) -> dict[str, object]:
    """The settings by which people tell jobs apart; all settings are in the artifact `job`."""
    used = {section for step in steps for section in step.sections}
    values: dict[str, object] = {
        "recipe": job.recipe,
        "seed": job.seed,
        "corpus": ", ".join(corpus.title for corpus in job.corpora),
        "split": _split(job),
        "speech_encoder": ", ".join(part.model for part in job.features.speech.parts),
        "text_encoder": job.features.text.model,
    }
    if "teacher" in used:
        members = job.teacher.members.values()
        values["teacher_preset"] = ", ".join(model.preset for model in members)
    if "seeds" in used:
        values["seeds"] = job.seeds
    if "students" in used:
        values["student_presets"] = ", ".join(
            f"{student.name}: {student.model.preset}" for student in job.students
        )
    return values


def _split(job: JobConfig) -> str:
    """`session, test 0.2, valid 0.15`, with every setting that is not at its default."""
    split = job.split
    changed = split.model_dump(mode="json", exclude_defaults=True)
    extra = {k: v for k, v in changed.items() if k not in {"by", "test", "valid"}}
    more = "".join(f", {key} {value}" for key, value in extra.items())
    if job.protocol.crosses:
        protocol = job.protocol
        if protocol.kind == "cross-corpus":
            return f"cross-corpus, held out by {split.by}, valid {split.valid:g}{more}"
        folds = f" in {protocol.folds} folds" if protocol.kind == "k-fold" else ""
        return f"{protocol.kind} by {protocol.by}{folds}, valid {split.valid:g}{more}"
    return f"{split.by}, test {split.test:g}, valid {split.valid:g}{more}"


def describe(job: JobConfig, steps: Sequence[Step], paragraphs: Iterable[str] = ()) -> str:
    """Description of the run in Markdown."""
    rows = [f"| {name} | {value} |" for name, value in parameters(job, steps).items()]
    table = "\n".join(["| setting | value |", "| --- | --- |", *rows])
    head = f"**{job.name}**: {', '.join(step.name for step in steps)}."
    return "\n\n".join([head, *(text for text in paragraphs if text), table])


def record(
    job: JobConfig, steps: Sequence[Step], artifacts: Artifacts, logger: RunLogger
) -> Summary:
    """Log what the finished steps say about the whole job, and return it."""
    summary = Summary()
    both = CompositeLogger([logger, summary])
    paragraphs = [step.record(artifacts[step.artifact], both) for step in steps]
    logger.tags({NOTE_TAG: describe(job, steps, paragraphs)})
    return summary


class Summary(NullLogger):
    """Keeps what the steps of a job say about the whole job.

    Attributes:
        figures: the metrics `test_*`.
        tags_logged: `floor`, `best_student` and the like.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.tags_logged: dict[str, str] = {}

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.figures |= {key: value for key, value in values.items() if key.startswith(FIGURE)}

    def tags(self, values: Mapping[str, str]) -> None:
        self.tags_logged |= values

    def main_figures(self) -> dict[str, float]:
        """Those of `main_figures`: teacher, best student and majority."""
        metrics = "|".join([*MAIN_METRICS, *DIMENSION_METRICS])
        main = re.compile(rf"test_(teacher|best_student|majority)_({metrics})(_low|_high|_sd)?")
        return {key: value for key, value in self.figures.items() if main.fullmatch(key)}


def summarize(steps: Sequence[Step], artifacts: Artifacts) -> Summary:
    """What `record` logs of these finished steps, without logging it."""
    summary = Summary()
    for step in steps:
        step.record(artifacts[step.artifact], summary)
    return summary


def main_figures(metrics: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Test scores of teacher, best student and majority baseline, as the report shows them.

    Args:
        metrics: content of the evaluation's metrics.json.

    Returns:
        metrics, e.g. `test_teacher_macro_f1`, with `..._low`, `..._high` and, over several seeds,
        `..._sd`; and the best student's name, as `floor` names it: chosen on validation, so that
        its test score is no maximum of several. Empty if no student learnt anything.
    """
    models = metrics["models"]
    teacher = next((model for model in models if model["role"] == "teacher"), None)
    chosen = metrics["floor"]["student"]
    best = next((m for m in models if m["name"] == chosen and not m["not_trained"]), None)
    scored = {"teacher": teacher, "best_student": best, "majority": metrics["baseline"]}
    figures: dict[str, float] = {}
    for who, model in scored.items():
        for metric in _main_metrics(metrics) if model else ():
            found = over_seeds(model, metric)
            for end, suffix in FIGURES.items():
                if found.get(end) is not None:
                    figures[f"test_{who}_{metric}{suffix}"] = float(found[end])
    return figures, str(best["name"]) if best else ""


def floor_figures(floor: Mapping[str, Any]) -> dict[str, float]:
    """How far teacher and the student chosen on validation are above the floor.

    Returns:
        metrics, e.g. `test_teacher_macro_f1_above_probe`, with `..._low` and `..._high`; also
        `..._above_majority`, and the same of `student`.
    """
    figures: dict[str, float] = {}
    for row in floor["models"]:
        if row["role"] == "student" and row["model"] != floor["student"]:
            continue
        for reference in ("probe", "majority"):
            difference = row[f"to_{reference}"] or {}
            name = f"test_{row['role']}_{floor['metric']}_above_{reference}"
            for end, suffix in FIGURES.items():
                if difference.get(end) is not None:
                    figures[name + suffix] = float(difference[end])
    return figures


def label_share_figures(
    points: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, dict[str, float]]]:
    """The curves of `label_shares`: labelled clips (the step of the metric) and what was scored.

    The metrics are e.g. `test_audio_macro_f1_by_labels_gain`, with `..._gain_low` and
    `..._gain_high`, and `..._distilled` and `..._control`.
    """
    for point in points:
        figures: dict[str, float] = {}
        for metric in MAIN_METRICS:
            for what in ("gain", "distilled", "control"):
                name = f"test_{point['student']}_{metric}_by_labels_{what}"
                for end, suffix in FIGURES.items():
                    value = point[what][metric].get(end)
                    if value is not None:
                        figures[name + suffix] = float(value)
        yield int(point["labelled_clips"]), figures


def robustness_figures(robustness: Mapping[str, Any] | None) -> dict[str, float]:
    """Change of UAR under every condition, e.g. `test_audio_uar_change_babble-10`, and `..._low`,
    `..._high`."""
    figures: dict[str, float] = {}
    for model in (robustness or {"models": ()})["models"]:
        for condition, found in model["conditions"].items():
            for end, suffix in FIGURES.items():
                if found["change"].get(end) is not None:
                    name = f"test_{model['name']}_uar_change_{condition}{suffix}"
                    figures[name] = float(found["change"][end])
    return figures


def figures_table(metrics: Mapping[str, Any]) -> str:
    """All models' main test scores as a Markdown table, the majority baseline first."""
    share = f"{metrics['confidence']:.0%}".replace("%", " %")
    main = _main_metrics(metrics)
    head = ["model", *(f"test {title} [{share} interval]" for title in main.values())]
    rows = [head, ["---"] * len(head)]
    baseline = metrics["baseline"]
    majority = {"name": baseline["name"], "metrics": baseline["metrics"]}
    for model in (majority, *metrics["references"], *metrics["models"]):
        rows.append([_title(model), *(_score(over_seeds(model, name)) for name in main)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _main_metrics(metrics: Mapping[str, Any]) -> Mapping[str, str]:
    of_classes = "macro_f1" in metrics["baseline"]["metrics"]
    return MAIN_METRICS if of_classes else DIMENSION_METRICS


def _title(model: Mapping[str, Any]) -> str:
    seeds = f" ({model['seeds']['count']} seeds)" if model.get("seeds") else ""
    return f"{model['name']}{seeds}{' NOT TRAINED' if model.get('not_trained') else ''}"


def _score(metric: Mapping[str, Any]) -> str:
    from multistill.report.terminal import score

    spread = metric.get("sd")
    return score(metric) + ("" if spread is None else f" SD {spread:.3f}")
