"""The test set is touched here, once: every model's answers, and the facts drawn from them.

predictions.parquet   utterance_id, model, label (predicted), distribution (7 shares),
                      truth (null on a tie), session, speaker; baselines included
metrics.json          everything that the report and the terminal table show
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from multistill.config import CLASSES, EvaluationConfig
from multistill.errors import MultistillError
from multistill.evaluation.answering import (
    Answering,
    ModelEntry,
    device_name,
    encoders,
    evenly,
    probe,
)
from multistill.evaluation.calibration import fit_temperature
from multistill.evaluation.clips import Clips, read_clips, read_training
from multistill.evaluation.latency import Road, percentiles
from multistill.evaluation.metrics import SMALLEST, Array, Labels, calibration_of, softmax
from multistill.evaluation.scoring import BASELINE, Prediction, Scorer, compare_all
from multistill.features.store import FeatureStore
from multistill.watch import Silent, Watch
from multistill.workspace import write_json

__all__ = ["METRICS", "PREDICTIONS", "ModelEntry", "evaluate"]

PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"
FORMAT = 1
IN_SAMPLE_CLIPS = 2000

SCHEMA = pa.schema(
    [
        pa.field("utterance_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("distribution", pa.list_(pa.float32(), len(CLASSES)), nullable=False),
        pa.field("truth", pa.string()),
        pa.field("session", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
    ]
)


def evaluate(
    manifest: Path,
    features: Path,
    models: Sequence[ModelEntry],
    config: EvaluationConfig,
    out: Path,
    watch: Watch | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score models on the test split; write predictions.parquet and metrics.json into `out`.

    Args:
        manifest: folder of the manifest.
        features: folder of the feature store.
        seed: of the bootstrap's draws.
    Returns:
        a summary: `headline` (model -> its main figures), `distillation` (sentences).
    Raises:
        MultistillError: no test clip has features, or `compare_to` names no entry.
    """
    watch = watch or Silent()
    _check(models)
    store = FeatureStore(features)
    splits = {name: read_clips(manifest, name, store) for name in ("train", "valid", "test")}
    test = splits["test"]
    if not len(test):
        raise MultistillError(
            f"the test split of {manifest} has no clip with features, so nothing can be "
            "scored; raise `split.test` or look into quarantine.parquet of the features"
        )
    training = read_training(manifest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(test, training, config, seed)
    used = encoders(store.info)
    road = None
    if config.latency_clips:
        road = Road(manifest, store.info, test.ids, config.latency_clips, device)
    described: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    with pq.ParquetWriter(out / PREDICTIONS, SCHEMA) as writer:
        constant = np.full(len(test), training.majority, dtype=np.int64)
        prior = np.tile(training.prior, (len(test), 1))
        writer.write_table(_table(BASELINE, test, prior, constant))
        for number, entry in enumerate(models, start=1):
            answering = Answering(entry, store, manifest, device)
            prediction = _predict(answering, test, splits["valid"])
            predictions.append(prediction)
            writer.write_table(_table(entry.name, test, prediction.probabilities))
            facts = answering.facts(used) | scorer.model(prediction)
            if entry.repeats:
                repeats = [
                    Answering(replace(entry, folders=[folder]), store, manifest, device)
                    for folder in entry.repeats
                ]
                facts["seeds"] = scorer.seeds(
                    prediction, [repeat.probabilities(test.ids) for repeat in repeats]
                )
            if entry.role == "teacher":
                facts["in_sample"] = _in_sample(answering, splits["train"], config)
            if road is not None:
                facts |= _latency(road, answering)
            described.append(facts)
            watch.progress(number, len(models), "models")
        references = []
        for modality in dict.fromkeys(facts["modality"] for facts in described):
            facts, answers = probe(modality, store, splits["train"], test, used)
            references.append(facts | scorer.model(Prediction(facts["name"], answers)))
            writer.write_table(_table(facts["name"], test, answers))
    baseline = scorer.baseline()
    comparisons = compare_all(scorer, predictions)
    write_json(
        out / METRICS,
        {
            "format": FORMAT,
            "test": scorer.facts(),
            "confidence": config.confidence,
            "resamples": config.resamples,
            "seed": seed,
            "encoders": used,
            "classes": list(CLASSES),
            "baseline": baseline,
            "references": references,
            "models": described,
            "distillation": comparisons,
            "device": device_name(device),
            "latency": road.facts() if road else None,
        },
    )
    return {
        "headline": {
            facts["name"]: {name: score["value"] for name, score in facts["metrics"].items()}
            for facts in (baseline, *described)
        },
        "distillation": [line["sentence"] for line in comparisons],
    }


def _check(models: Sequence[ModelEntry]) -> None:
    names = [entry.name for entry in models]
    for entry in models:
        if names.count(entry.name) > 1 or entry.name == BASELINE:
            raise MultistillError(f"two models to evaluate are called `{entry.name}`; rename one")
        if entry.compare_to is not None and entry.compare_to not in names:
            raise MultistillError(
                f"the model `{entry.name}` is to be compared with `{entry.compare_to}`, "
                f"which is not among those evaluated: {', '.join(names)}"
            )


def _predict(answering: Answering, test: Clips, valid: Clips) -> Prediction:
    """Answers on test, as they are and with a temperature fitted on validation."""
    entry = answering.entry
    probabilities = answering.probabilities(test.ids)
    temperature = None
    if len(valid):
        temperature = fit_temperature(_logits(answering.probabilities(valid.ids)), valid.truth)
    calibrated = softmax(_logits(probabilities) / temperature) if temperature else None
    return Prediction(entry.name, probabilities, calibrated, temperature, entry.compare_to)


def _logits(probabilities: Array) -> Array:
    """Logits up to a constant, which no softmax sees; defined for an ensemble's mean too."""
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _in_sample(answering: Answering, train: Clips, config: EvaluationConfig) -> dict[str, Any]:
    """A teacher's calibration on the clips it was trained on (at most `IN_SAMPLE_CLIPS`)."""
    chosen = evenly(len(train), IN_SAMPLE_CLIPS)
    probabilities = answering.probabilities([train.ids[row] for row in chosen])
    return calibration_of(
        train.truth[chosen], probabilities, train.shares[chosen], config.calibration_bins
    )


def _latency(road: Road, answering: Answering) -> dict[str, Any]:
    head = answering.head_times(road.ids)
    whole = road.end_to_end(answering.spec.modality, head)
    found: dict[str, Any] = {"latency_ms": percentiles(head)}
    if whole is not None:
        found["latency_end_to_end_ms"] = percentiles(whole)
        found["real_time_factor"] = road.real_time_factor(whole)
    return found


def _table(
    name: str, clips: Clips, probabilities: Array, predicted: Labels | None = None
) -> pa.Table:
    answers = probabilities.argmax(axis=1) if predicted is None else predicted
    flat = pa.array(probabilities.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "utterance_id": clips.ids,
            "model": [name] * len(clips),
            "label": [CLASSES[answer] for answer in answers],
            "distribution": pa.FixedSizeListArray.from_arrays(flat, len(CLASSES)),
            "truth": [CLASSES[winner] if winner >= 0 else None for winner in clips.truth],
            "session": clips.sessions,
            "speaker": clips.speakers,
        },
        schema=SCHEMA,
    )
