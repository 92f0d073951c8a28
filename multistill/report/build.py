"""The report stage: report.json and report.html (a single file that opens offline)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multistill import provenance
from multistill.config import JobConfig
from multistill.corpora.coverage import ClassCounts, coverage_gaps
from multistill.corpora.manifest import QUALITY
from multistill.encoders.training_data import overlaps
from multistill.evaluation.courses import RESULTS
from multistill.evaluation.evaluate import METRICS
from multistill.report.continual import describe_continual
from multistill.report.corpus import describe_corpus
from multistill.report.errors import describe_errors, listed
from multistill.report.files import HTML, JSON
from multistill.report.html import render
from multistill.report.playback import read_clips
from multistill.report.pretraining import describe_pretraining
from multistill.report.protocol import describe_protocol
from multistill.report.search import (
    describe_search,
    read_trials,
    scores_over_seeds,
    search_on_first_fold,
    study_folder,
)
from multistill.report.small_test_sets import small_test_set
from multistill.report.teacher_calibration import teacher_calibration
from multistill.report.terminal import encoder, encoders_read
from multistill.wording import counted
from multistill.workspace import Artifact, read_json, write_atomic, write_json

MIN_VALIDATION_CLIPS = 100
MIN_VALIDATION_GROUPS = 3
"""Below either, the choice of an epoch or a winner is mostly luck."""


def write_report(
    out: Path,
    *,
    job: JobConfig,
    artifacts: Mapping[str, Artifact],
    histories: Mapping[str, Any] | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    forecast: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.json and report.html into `out`.

    Args:
        artifacts: `manifest`, `features` and `evaluation`; `pretrained`, `soft_targets`, `search`
            and `forgetting` where the recipe makes them.
        histories: content of history.json by model name.
        stages: name, fingerprint, seconds and cached of every stage.
        forecast: what was forecast beside what it took (`forecast.record.beside_truth`).

    Returns:
        the content of report.json.
    """
    manifest, soft_targets = artifacts["manifest"], artifacts.get("soft_targets")
    features, search = artifacts["features"], artifacts.get("search")
    forgetting = artifacts.get("forgetting")
    metrics = read_json(artifacts["evaluation"].path / METRICS)
    corpus = describe_corpus(manifest.path, manifest.summary)
    report: dict[str, Any] = {
        "job": job.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "commit": provenance.git_commit(),
        "seed": job.seed,
        "seeds": job.seeds,
        "split": {"by": job.split.by, "seed": job.split.seed},
        "protocol": describe_protocol(job, metrics["folds"]),
        "warnings": warnings(corpus, metrics, job, features.summary),
        "corpus": corpus,
        "encoders": metrics["encoders"],
        "features": _features(features.summary),
        "test": metrics["test"],
        "classes": metrics["classes"],
        "class_counts": metrics["class_counts"],
        "confidence": metrics["confidence"],
        "resamples": metrics["resamples"],
        "device": metrics["device"],
        "baseline": metrics["baseline"],
        "references": metrics["references"],
        "human_ceiling": metrics["human_ceiling"],
        "layers": metrics["layers"],
        "models": metrics["models"],
        "dimensions": metrics["dimensions"],
        "pretraining": describe_pretraining(artifacts.get("pretrained")),
        "robustness": metrics["robustness"],
        "latency": metrics["latency"],
        "floor": metrics["floor"],
        "distillation": metrics["distillation"],
        "cross_corpus": metrics["cross_corpus"],
        "errors": describe_errors(
            artifacts["evaluation"].path, manifest.path, metrics, job.report.transcripts
        ),
        "label_shares": metrics["label_shares"],
        "teacher_calibration": teacher_calibration(
            metrics, manifest.path, soft_targets.path, job.evaluation.calibration_bins
        )
        if soft_targets and metrics["classes"] and not metrics["folds"]
        else [],
        "targets": job.distillation.targets,
        "search": describe_search(search, job) if search else None,
        "continual": describe_continual(read_json(forgetting.path / RESULTS), job)
        if forgetting
        else None,
        "stages": [dict(stage) for stage in stages],
        "forecast": forecast,
    }
    if report["search"]:
        report["search"]["seeds"] = scores_over_seeds(report["search"], metrics["models"])
    write_json(out / JSON, report)
    quality = manifest.path / QUALITY
    clips = [clip["id"] for clip in listed(report["errors"])] if job.report.audio else []
    html = render(
        report,
        trials=read_trials(study_folder(search)) if search else [],
        histories={name: history["epochs"] for name, history in (histories or {}).items()},
        quality=read_json(quality) if quality.exists() else None,
        job=job,
        playback=read_clips(manifest.path, clips, job.report.audio_mb) if clips else None,
    )
    write_atomic(out / HTML, html)
    return report


def _features(summary: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("clips", "quarantined", "cut", "cut_texts", "audio_seconds", "seconds")
    return {key: summary[key] for key in keys if key in summary}


def is_leaky(leaks: Mapping[str, Any], job: JobConfig) -> bool:
    """Whether sessions or speakers occur in more than one split, or the split is random."""
    shared = any(
        isinstance(value, int) and value > 0
        for name, value in leaks.items()
        if name in ("sessions", "speakers")
    )
    return shared or job.split.by == "random"


def warnings(
    corpus: Mapping[str, Any],
    metrics: Mapping[str, Any],
    job: JobConfig,
    features: Mapping[str, Any],
) -> list[dict[str, str]]:
    """Caveats shown above all results: kind, short title and text of each."""
    return [
        {"kind": kind, "title": title, "text": text}
        for kind, title, text in (
            *_not_trained_warnings(metrics["models"]),
            *search_on_first_fold(metrics, job),
            *_coverage_warnings(metrics["class_counts"]),
            *_corpus_warnings(corpus, job),
            *_cut_warnings(features, job),
            *_overlap_warnings(job),
            *_reliability_warnings(metrics),
            *small_test_set(metrics["test"], metrics["class_counts"]["test"], job.protocol.crosses),
            *_test_set_warnings(corpus, metrics, job),
        )
    ]


def _not_trained_warnings(models: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    reasons = {model["name"]: model["not_trained"] for model in models if model["not_trained"]}
    if reasons:
        first, reason = next(iter(reasons.items()))
        yield (
            "not-trained",
            "NOT TRAINED",
            f"{', '.join(reasons)}: no better than a model that learnt nothing, so comparisons "
            f"with them say nothing. {first}: {reason}.",
        )


def _coverage_warnings(counts: ClassCounts) -> Iterator[tuple[str, str, str]]:
    """Classes that a part lacks, counted over the clips that have features."""
    for gap in coverage_gaps(counts):
        yield gap.kind, gap.title, gap.text[:1].upper() + gap.text[1:]


def _corpus_warnings(corpus: Mapping[str, Any], job: JobConfig) -> Iterator[tuple[str, str, str]]:
    if is_leaky(corpus["leaks"], job):
        yield (
            "leak",
            "LEAKY SPLIT",
            "Sessions or speakers occur in more than one split, so every result here is too "
            "optimistic: models may have been trained on the voices they are tested on.",
        )
    if corpus["leaks"].get("recordings"):
        yield (
            "recordings",
            "DUPLICATE RECORDINGS",
            "Test recordings that also occur in training or validation under other names (equal "
            f"in every byte): {corpus['leaks']['recordings']}.",
        )
    if corpus["synthetic"]:
        yield (
            "synthetic",
            "SYNTHETIC CORPUS",
            "The speech comes from a synthesiser and the votes are simulated. The results show "
            "that the program works; they say nothing about human speech.",
        )


def _cut_warnings(features: Mapping[str, Any], job: JobConfig) -> Iterator[tuple[str, str, str]]:
    """Transcripts whose end the text encoder has not read."""
    cut = features.get("cut_texts", {})  # stores of earlier versions do not count them
    if cut:
        by_corpus = ", ".join(f"{name} {count}" for name, count in cut.items())
        yield (
            "cut-transcripts",
            "CUT TRANSCRIPTS",
            f"Transcripts of which the text encoder read the beginning only: {by_corpus} "
            f"(features.text.max_tokens: {job.features.text.max_tokens}).",
        )


def _overlap_warnings(job: JobConfig) -> Iterator[tuple[str, str, str]]:
    """Encoders whose published training data hold a corpus of the job."""
    for sentence in overlaps(job.features, job.corpora):
        yield "encoder-data", "ENCODER KNOWS THE CORPUS", f"{sentence}."


def _reliability_warnings(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Untrained encoders, and too little data for choices on validation."""
    read = encoders_read(metrics)
    untrained = [
        encoder(info)
        for name, info in metrics["encoders"].items()
        if info["trained"] is False and name in read
    ]
    if untrained:
        yield (
            "untrained",
            "UNTRAINED ENCODER",
            f"{' and '.join(untrained)}: the weights are random because no trained ones were "
            "available.",
        )
    valid = metrics["validation"]
    few = valid["clips"] < MIN_VALIDATION_CLIPS or valid["groups"] < MIN_VALIDATION_GROUPS
    if few and valid["clips"]:  # without any, nothing is chosen
        yield (
            "small-validation",
            "SMALL VALIDATION SET",
            f"Epochs, temperatures and winners are chosen on {counted(valid['clips'], 'clip')} of "
            f"{counted(valid['groups'], valid['unit'])}: another "
            "choice of them could give another ranking. Raise `split.valid`, or add speakers.",
        )


def _test_set_warnings(
    corpus: Mapping[str, Any], metrics: Mapping[str, Any], job: JobConfig
) -> Iterator[tuple[str, str, str]]:
    """Transcripts that also occur outside the test set, and test clips without features."""
    test = metrics["test"]
    shared = corpus["leaks"].get("transcript_rows", 0)
    if shared and "text" in encoders_read(metrics):
        # The same clips are tested by the models of every corpus, and counted for each.
        matrix = job.protocol.kind == "cross-corpus"
        times = len(job.corpora) if matrix else 1
        every = shared == times * corpus["splits"]["test"]["utterances"]
        number = f"{shared}{', counted for each corpus that trains' * matrix}"
        sliced = any(part["by"] == "transcript" for part in metrics["baseline"].get("slices", ()))
        consequence = (
            "this corpus cannot show how they perform on unseen words."
            if every
            else "results without these clips are listed under Slices."
            if sliced
            else "no results without these clips are listed."
        )
        yield (
            "transcripts",
            "SHARED TRANSCRIPTS",
            "Test clips whose transcript also occurs outside the test set: "
            f"{'all' if every else number}. Models that read text may have seen it; {consequence}",
        )
    if test["without_features"]:
        yield (
            "left-out",
            "CLIPS WITHOUT FEATURES",
            "Test clips without features (quarantined), which are not scored: "
            f"{test['without_features']}.",
        )
