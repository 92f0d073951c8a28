"""The test set is touched here, once: every model's answers, and the facts drawn from them.

predictions.parquet   utterance_id, model, label (predicted), distribution (7 shares),
                      truth (null on a tie), session, speaker; baselines included
metrics.json          everything that the report and the terminal table show
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import CLASSES, EvaluationConfig
from multistill.errors import MultistillError
from multistill.evaluation.candidates import (
    Candidate,
    LoadedModel,
    device_name,
    encoders,
    evenly,
    probe,
)
from multistill.evaluation.scoring import BASELINE, Prediction, Scorer, compare_all
from multistill.evaluation.utterances import Utterances, read_training, read_utterances
from multistill.features.cache import open_store
from multistill.hardware import default_device
from multistill.inference.latency import EncoderLatency, percentiles
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import SMALLEST, calibration_of, softmax
from multistill.models.spec import Modality
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.typing import DoubleArray, IntArray
from multistill.workspace import write_json

__all__ = ["METRICS", "PREDICTIONS", "Candidate", "evaluate"]

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
    models: Sequence[Candidate],
    config: EvaluationConfig,
    out: Path,
    logger: RunLogger | None = None,
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
    logger = logger or NullLogger()
    _check(models)
    store = open_store(features)
    splits = {name: read_utterances(manifest, name, store) for name in ("train", "valid", "test")}
    test = splits["test"]
    if not len(test):
        raise MultistillError(
            f"the test split of {manifest} has no clip with features, so nothing can be "
            "scored; raise `split.test` or look into quarantine.parquet of the features"
        )
    training = read_training(manifest)
    device = default_device()
    scorer = Scorer(test, training, config, seed)
    used = encoders(store.info)
    encoder_latency = None
    if config.latency_clips:
        encoder_latency = EncoderLatency(
            manifest, store.info, test.ids, config.latency_clips, device
        )
    described: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    with pq.ParquetWriter(out / PREDICTIONS, SCHEMA) as writer:
        constant = np.full(len(test), training.majority, dtype=np.int64)
        prior = np.tile(training.prior, (len(test), 1))
        writer.write_table(_table(BASELINE, test, prior, constant))
        for number, entry in enumerate(models, start=1):
            loaded = LoadedModel(entry, store, manifest, device)
            prediction = _predict(loaded, test, splits["valid"])
            predictions.append(prediction)
            writer.write_table(_table(entry.name, test, prediction.probabilities))
            facts = loaded.facts(used) | scorer.model(prediction)
            if entry.repeats:
                repeats = [
                    LoadedModel(replace(entry, folders=[folder]), store, manifest, device)
                    for folder in entry.repeats
                ]
                facts["seeds"] = scorer.seeds(
                    prediction, [repeat.probabilities(test.ids) for repeat in repeats]
                )
            if entry.role == "teacher":
                facts["in_sample"] = _in_sample(loaded, splits["train"], config)
            if encoder_latency is not None:
                facts |= _latency(encoder_latency, loaded)
            described.append(facts)
            logger.progress(number, len(models), "models")
        references = []
        for modality in dict.fromkeys(facts["modality"] for facts in described) or get_args(
            Modality
        ):
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
            "latency": encoder_latency.facts() if encoder_latency else None,
        },
    )
    return {
        "headline": {
            facts["name"]: {name: score["value"] for name, score in facts["metrics"].items()}
            for facts in (baseline, *described)
        },
        "distillation": [line["sentence"] for line in comparisons],
    }


def _check(models: Sequence[Candidate]) -> None:
    names = [entry.name for entry in models]
    for entry in models:
        if names.count(entry.name) > 1 or entry.name == BASELINE:
            raise MultistillError(f"two models to evaluate are called `{entry.name}`; rename one")
        if entry.compare_to is not None and entry.compare_to not in names:
            raise MultistillError(
                f"the model `{entry.name}` is to be compared with `{entry.compare_to}`, "
                f"which is not among those evaluated: {', '.join(names)}"
            )


def _predict(loaded: LoadedModel, test: Utterances, valid: Utterances) -> Prediction:
    """Answers on test, as they are and with a temperature fitted on validation."""
    entry = loaded.entry
    probabilities = loaded.probabilities(test.ids)
    temperature = None
    if len(valid):
        temperature = fit_temperature(_logits(loaded.probabilities(valid.ids)), valid.truth)
    calibrated = softmax(_logits(probabilities) / temperature) if temperature else None
    return Prediction(entry.name, probabilities, calibrated, temperature, entry.compare_to)


def _logits(probabilities: DoubleArray) -> DoubleArray:
    """Logits up to a constant, which no softmax sees; defined for an ensemble's mean too."""
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _in_sample(loaded: LoadedModel, train: Utterances, config: EvaluationConfig) -> dict[str, Any]:
    """A teacher's calibration on the clips it was trained on (at most `IN_SAMPLE_CLIPS`)."""
    chosen = evenly(len(train), IN_SAMPLE_CLIPS)
    probabilities = loaded.probabilities([train.ids[row] for row in chosen])
    return calibration_of(
        train.truth[chosen], probabilities, train.shares[chosen], config.calibration_bins
    )


def _latency(encoder_latency: EncoderLatency, loaded: LoadedModel) -> dict[str, Any]:
    head = loaded.head_times(encoder_latency.ids)
    whole = encoder_latency.end_to_end(loaded.spec.modality, head)
    found: dict[str, Any] = {"latency_ms": percentiles(head)}
    if whole is not None:
        found["latency_end_to_end_ms"] = percentiles(whole)
        found["real_time_factor"] = encoder_latency.real_time_factor(whole)
    return found


def _table(
    name: str, clips: Utterances, probabilities: DoubleArray, predicted: IntArray | None = None
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
