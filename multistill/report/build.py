"""report.json (the contract's keys and more) and report.html (one file, opens offline)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multistill import provenance
from multistill.config import JobConfig
from multistill.corpora.manifest import QUALITY
from multistill.report import search as searched
from multistill.report.corpus import describe
from multistill.report.html import render
from multistill.report.teacher_calibration import teacher_calibration
from multistill.report.terminal import encoder
from multistill.workspace import Artifact, read_json, write_atomic, write_json

JSON = "report.json"
HTML = "report.html"
FEW_SESSIONS = 6
"""With fewer, no test by session can reach 5 %: all signs agree in 2 of 2^5 cases (6 %)."""


def write_report(
    out: Path,
    *,
    job: JobConfig,
    artifacts: Mapping[str, Artifact],
    histories: Mapping[str, Any] | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write both files into `out`.

    Args:
        artifacts: `manifest`, `features` and `evaluation`; `soft_targets` and `search` where the
            recipe makes them.
        histories: model name -> its history.json.
        stages: name, fingerprint, seconds, cached of every stage.
    Returns:
        what report.json holds.
    """
    prepare, features = artifacts["manifest"], artifacts["features"]
    distill, search = artifacts.get("soft_targets"), artifacts.get("search")
    measured = read_json(artifacts["evaluation"].path / "metrics.json")
    corpus = describe(prepare.path, prepare.summary)
    report: dict[str, Any] = {
        "job": job.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "commit": provenance.git_commit(),
        "seed": job.seed,
        "warnings": warnings(corpus, measured, job),
        "corpus": corpus,
        "encoders": measured["encoders"],
        "features": _features(features.summary),
        "test": measured["test"],
        "confidence": measured["confidence"],
        "resamples": measured["resamples"],
        "device": measured["device"],
        "baseline": measured["baseline"],
        "references": measured["references"],
        "models": measured["models"],
        "latency": measured["latency"],
        "distillation": measured["distillation"],
        "teacher_calibration": teacher_calibration(
            measured, prepare.path, distill.path, job.evaluation.calibration_bins
        )
        if distill
        else [],
        "targets": job.distillation.targets,
        "search": searched.facts(search.path, search.summary, job) if search else None,
        "stages": [dict(stage) for stage in stages],
    }
    if report["search"]:
        report["search"]["seeds"] = searched.over_seeds(report["search"], measured["models"])
    write_json(out / JSON, report)
    quality = prepare.path / QUALITY
    page = render(
        report,
        trials=searched.trials(search.path) if search else [],
        histories={name: value["epochs"] for name, value in (histories or {}).items()},
        quality=read_json(quality) if quality.exists() else None,
        job=job,
    )
    write_atomic(out / HTML, page)
    return report


def _features(summary: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("clips", "quarantined", "audio_seconds", "seconds")
    return {name: summary[name] for name in kept if name in summary}


def leaking(leaks: Mapping[str, Any], job: JobConfig) -> bool:
    """Whether a session or speaker stands on both sides, as counted or as asked for."""
    counted = any(
        isinstance(value, int) and value > 0
        for name, value in leaks.items()
        if name in ("sessions", "speakers")
    )
    return counted or job.split.by == "random"


def warnings(
    corpus: Mapping[str, Any], measured: Mapping[str, Any], job: JobConfig
) -> list[dict[str, str]]:
    """What a reader must know before any number: kind, short title, one sentence."""
    found: list[dict[str, str]] = []

    def warn(kind: str, title: str, text: str) -> None:
        found.append({"kind": kind, "title": title, "text": text})

    if leaking(corpus["leaks"], job):
        warn(
            "leak",
            "LEAKY SPLIT",
            "Sessions or speakers stand on both sides of the split, so every figure here is "
            "too good: models may know the voices they are tested on.",
        )
    if corpus["leaks"].get("recordings"):
        warn(
            "recordings",
            "EQUAL RECORDINGS",
            "Recordings of the test set that also stand in training or validation, under other "
            "names and alike in size, beginning, middle and end: "
            f"{corpus['leaks']['recordings']}.",
        )
    if corpus["synthetic"]:
        warn(
            "synthetic",
            "SYNTHETIC CORPUS",
            "The speech is made by a synthesiser and the votes are simulated. The figures show "
            "that the program works; they say nothing about human speech.",
        )
    standing = [
        encoder(facts) for facts in measured["encoders"].values() if facts["trained"] is False
    ]
    if standing:
        warn(
            "untrained",
            "UNTRAINED ENCODER",
            f"{' and '.join(standing)}: weights are random and stand in for trained ones that "
            "were not at hand.",
        )
    resampled = measured["test"]["resampled"]
    if resampled["unit"] != "session":
        warn(
            "one-session",
            "ONE TEST SESSION",
            f"Intervals are drawn by {resampled['unit']}, since the test set has one session.",
        )
    elif resampled["count"] < FEW_SESSIONS:
        warn(
            "few-sessions",
            "FEW TEST SESSIONS",
            f"The test set has {resampled['count']} sessions. Intervals tell how sure the "
            "figures are for these speakers; how much other speakers would differ cannot be "
            "known from so few.",
        )
    shared = corpus["leaks"].get("transcript_rows", 0)
    if shared:
        every = shared == corpus["splits"]["test"]["utterances"]
        rest = (
            "what they do with new words cannot be told from this corpus."
            if every
            else "results without these clips stand under Slices."
        )
        warn(
            "transcripts",
            "SHARED TRANSCRIPTS",
            f"{'All' if every else shared} test clips have a transcript that also stands outside "
            f"the test set. Models that read text may know it; {rest}",
        )
    if measured["test"]["without_features"]:
        warn(
            "left-out",
            "CLIPS LEFT OUT",
            f"Test clips without features (quarantined), not scored: "
            f"{measured['test']['without_features']}.",
        )
    return found
