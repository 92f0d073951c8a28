"""The model card: what a model is, what it was trained and tested on, and where it fails.

Sections follow Mitchell et al., "Model cards for model reporting" (FAT* 2019). Nothing is
guessed: what neither the model folder nor the report of its job says is called unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill import __version__
from multistill.encoders.packaged import PACKAGED
from multistill.evaluation.figures import over_seeds
from multistill.wording import counted
from multistill.workspace import read_json

Report = Mapping[str, Any]
METRICS = {"uar": "UAR", "macro_f1": "macro F1", "accuracy": "accuracy", "ccc": "CCC"}
"""Of classes, and for a model of dimensions alone the mean over them."""
SLICE_METRICS = ("uar", "macro_f1")
OVERLAP = "encoder-data"
"""Kind of the report's warning about encoders whose published training data hold a test corpus."""
USE = """\
The scores are about labels that annotators gave to expressed emotion, in speech like that of the
corpus; they say nothing about what a person feels. Other languages, microphones, rooms and kinds
of speech (acted, spontaneous) were not tested unless a section above names them. The model
is no ground for decisions about people."""


def find_report(config: Mapping[str, Any], workspaces: Sequence[Path]) -> Report | None:
    """The newest report of a finished job that has a model; None if there is none.

    Args:
        config: of the model folder.
        workspaces: where jobs ran.
    """
    found = [
        report
        for workspace in workspaces
        for path in sorted(workspace.glob("reports/*/latest/report.json"))
        if _model((report := _read(path)), config) is not None
    ]
    return max(found, key=lambda report: str(report["created"]), default=None)


def _read(path: Path) -> dict[str, Any]:
    try:
        report = read_json(path)
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _model(report: Report, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's entry in a report: one of its trainings is that of the folder."""
    task = config["training"].get("task")
    for model in report.get("models", ()) if task else ():
        if any(training.get("task") == task for training in model.get("training", ())):
            return dict(model)
    return None


def card(
    config: Mapping[str, Any],
    name: str,
    report: Report | None,
    examples: Sequence[str],
    *,
    int8: bool,
) -> str:
    """A README.md.

    Args:
        config: of the model folder.
        name: of the model.
        report: report.json of its job.
        examples: code that uses the model.
        int8: the weights are rounded to 8 bits.
    """
    model = None if report is None else _model(report, config)
    sections = {
        "Use": [f"```python\n{each}```" for each in examples],
        "Data": list(_data(config, report)),
        "Results": list(_results(config, report, model, int8)),
        "Slices": list(_slices(model)),
        "Limits": list(_limits(report)),
        "Encoders": list(_encoders(config, report)),
        "Licence": list(_licence(config)),
    }
    text = "".join(
        f"\n## {title}\n\n" + "\n\n".join(body) + "\n" for title, body in sections.items()
    )
    return f"{_front_matter()}\n# {name}\n\n{_what(config, int8)}\n{text}"


def _front_matter() -> str:
    return (
        "---\nlibrary_name: multistill\npipeline_tag: audio-classification\n"
        "tags:\n- speech-emotion-recognition\n- knowledge-distillation\n---\n"
    )


def _what(config: Mapping[str, Any], int8: bool) -> str:
    spec = config["spec"]
    reads = {"audio": "recordings", "text": "transcripts"}.get(
        spec["modality"], "recordings and transcripts"
    )
    parts = []
    if config["labels"]:
        parts.append(f"a probability for each of {', '.join(config['labels'])}")
    if spec.get("dimensions"):
        parts.append(f"{', '.join(spec['dimensions'])} from 1 to 5")
    rounded = ", its weights rounded to 8 bits" if int8 else ""
    fitted = config["temperature"]
    calibrated = "not calibrated" if fitted is None else f"calibrated (temperature {fitted:.3f})"
    return (
        f"Speech emotion recognition: a {config['role']}{rounded} that reads {reads} and gives "
        f"{' and '.join(parts)}. Probabilities are {calibrated}. Written by multistill "
        f"{__version__}; SHA-256 of the weights: `{config['sha256']}`."
    )


def _data(config: Mapping[str, Any], report: Report | None) -> Iterator[str]:
    training = config["training"]
    if report is None:
        rows = {part: training.get(f"{part}_rows") for part in ("train", "valid")}
        known = [f"{part} {counted(n, 'clip')}" for part, n in rows.items() if n is not None]
        yield (
            "Which corpus it was trained on, and how that was split, is unknown: the model was "
            "not found in a finished job. "
            + (f"Of its training is known: {', '.join(known)}." if known else "")
        ).strip()
        return
    corpus = report["corpus"]
    corpora = ", ".join(
        f"{name} ({counted(clips, 'clip')})" for name, clips in corpus["counts"]["corpora"].items()
    )
    yield f"Corpora: {corpora}. Split by {report['split']['by']}."
    yield _table(
        ["part", "clips", "speakers", "sessions", "hours"],
        [
            [part, each["utterances"], each["speakers"], each["sessions"], f"{each['hours']:.2f}"]
            for part, each in corpus["splits"].items()
        ],
    )


def _results(
    config: Mapping[str, Any], report: Report | None, model: Mapping[str, Any] | None, int8: bool
) -> Iterator[str]:
    validation = config["training"].get("validation") or {}
    scores = {k: v for k, v in validation.items() if k in METRICS}
    if report is None or model is None:
        yield "Test results are unknown: the model was not found in a finished job."
        if scores:
            shown = ", ".join(f"{METRICS[name]} {value:.3f}" for name, value in scores.items())
            yield f"On validation, on which the epoch was chosen: {shown}."
        return
    kept = model.get("int8") if int8 else None
    scored = model if kept is None else {**model, "metrics": kept["metrics"], "seeds": None}
    shares = f"{100 * report['confidence']:g} %"
    seeds = (scored.get("seeds") or {}).get("count", 1)
    over = f", means over {seeds} trainings of which this is one" if seeds > 1 else ""
    yield f"{report['protocol']['sentence']} Test, job `{report['job']}`{over}:"
    rows = [
        [METRICS[name], *_figures(over_seeds(scored, name))]
        for name in METRICS
        if name in scored["metrics"]
    ]
    calibrated = model.get("calibration") if kept is None else None
    if calibrated:
        rows.append(["calibration error, calibrated", *_figures(calibrated["ece"])])
    yield _table(["metric", "value", f"{shares} interval"], rows)
    baseline = (report.get("baseline") or {"metrics": {}})["metrics"].get("uar")
    if baseline is not None:
        yield f"The most frequent class alone has UAR {baseline['value']:.3f}."
    if model.get("not_trained"):
        yield f"This model is {model['not_trained']}."


def _slices(model: Mapping[str, Any] | None) -> Iterator[str]:
    if model is None or not model.get("slices"):
        yield "Not measured, as far as is known."
        return
    yield _table(
        ["slice", "clips", *(METRICS[name] for name in SLICE_METRICS)],
        [
            [
                f"{each['by']}: {each['name']}" + (" (few clips)" if each["small"] else ""),
                each["clips"],
                *(_with_interval(each["metrics"].get(name)) for name in SLICE_METRICS),
            ]
            for each in model["slices"]
        ],
    )
    for each in model.get("fairness") or ():
        uar = each.get("uar")
        if uar:
            yield (
                f"UAR differs by {uar['difference']:.3f} between {each['by']} {uar['highest']} and "
                f"{uar['lowest']} (p = {uar['p']:.2f} by permutation)."
            )


def _limits(report: Report | None) -> Iterator[str]:
    yield USE
    for warning in () if report is None else report["warnings"]:
        if warning["kind"] != OVERLAP:
            yield f"**{warning['title']}.** {warning['text']}"


def _encoders(config: Mapping[str, Any], report: Report | None) -> Iterator[str]:
    for kind, each in _read_encoders(config).items():
        revision = f", revision `{each['revision']}`" if each.get("revision") else ""
        own = ", trained with this model" if "training" in each else ""
        yield f"The {kind} encoder is `{each.get('name', 'unknown')}`{revision}{own}."
    if report is None:
        yield "Whether the encoder's own training data hold the test clips is unknown."
        return
    known = [each["text"] for each in report["warnings"] if each["kind"] == OVERLAP]
    yield from known or [
        "Published training data of these encoders are not known to hold a corpus of the job; "
        "encoders and corpora are recognised by their names, and most publishers list little."
    ]


def _read_encoders(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    left_out = {"audio": "text", "text": "speech"}.get(config["spec"]["modality"])
    return {kind: each for kind, each in config["encoders"].items() if kind != left_out}


def _licence(config: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Not recorded. What may be done with the weights depends on the licences of the corpora "
        "and of the encoders."
    )
    for each in _read_encoders(config).values():
        packaged = PACKAGED.get(str(each.get("name")))
        if packaged is not None:
            yield f"Weights of `{each['name']}`: {packaged.licence}."


def _figures(score: Mapping[str, Any]) -> list[str]:
    value = f"{score['value']:.3f}"
    if "sd" in score:
        value += f" (sd {score['sd']:.3f})"
    return [value, _interval(score)]


def _interval(score: Mapping[str, Any]) -> str:
    if score.get("low") is None:
        return "none: too few groups of clips"
    return f"{score['low']:.3f} to {score['high']:.3f}"


def _with_interval(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return ""
    between = "" if score.get("low") is None else f" ({_interval(score)})"
    return f"{score['value']:.3f}{between}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
