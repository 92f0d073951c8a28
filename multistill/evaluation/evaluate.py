"""Score every candidate on the test set, which no other stage reads.

predictions.parquet   utterance_id, model, label (predicted), distribution (a share per class),
                      truth (null on a tie), session, speaker; baselines included
metrics.json          everything that the report and the terminal table show
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import EvaluationConfig
from multistill.corpora.manifest import with_classes
from multistill.errors import MultistillError
from multistill.evaluation.candidates import (
    Candidate,
    LoadedModel,
    describe_encoders,
    device_name,
    evenly_spaced,
    probe_baseline,
)
from multistill.evaluation.figures import single_numbers
from multistill.evaluation.floor import describe_floor
from multistill.evaluation.label_shares import describe_label_shares
from multistill.evaluation.paired import PREDICTIONS
from multistill.evaluation.scoring import BASELINE, Prediction, Scorer
from multistill.evaluation.trained import why_not_trained
from multistill.evaluation.utterances import (
    Utterances,
    read_training_statistics,
    read_utterances,
)
from multistill.features.cache import open_store
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.latency import EncoderLatency, percentiles
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import EPS, calibration_summary, softmax
from multistill.metrics.intervals import choose_clusters
from multistill.models.spec import Modality
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.typing import DoubleArray, IntArray
from multistill.workspace import write_json

__all__ = ["METRICS", "PREDICTIONS", "Candidate", "evaluate"]

METRICS = "metrics.json"
FORMAT = 1
MAX_IN_SAMPLE_CLIPS = 2000


def predictions_schema(classes: Sequence[str]) -> pa.Schema:
    """Of predictions.parquet; the metadata name the classes in the order of `distribution`."""
    fields = [
        pa.field("utterance_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("distribution", pa.list_(pa.float32(), len(classes)), nullable=False),
        pa.field("truth", pa.string()),
        pa.field("session", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata=with_classes(classes))


def evaluate(
    manifest: Path,
    features: Path,
    candidates: Sequence[Candidate],
    config: EvaluationConfig,
    out: Path,
    logger: RunLogger | None = None,
    seed: int = 0,
    split_by: str = "session",
) -> dict[str, Any]:
    """Score models on the test split; write predictions.parquet and metrics.json into `out`.

    Args:
        manifest: folder of the manifest.
        features: folder of the feature store.
        seed: of the bootstrap resamples.
        split_by: `split.by` of the job, which names the unit of the intervals.

    Returns:
        a summary: `headline` (metrics by model), `floor` (a sentence), `distillation` (sentences),
        `not_trained` (why, by model).

    Raises:
        MultistillError: no test clip has features, two candidates share a name, or `compare_to`
            names no candidate.
    """
    logger = logger or NullLogger()
    _check_names(candidates)
    store = open_store(features)
    splits = {name: read_utterances(manifest, name, store) for name in ("train", "valid", "test")}
    test = splits["test"]
    if not len(test):
        raise MultistillError(
            f"the test split of {manifest} has no clip with features, so nothing can be "
            "scored; raise `split.test` or look into quarantine.parquet of the features"
        )
    training = read_training_statistics(manifest)
    scorer = Scorer(test, training, config, seed, split_by)
    evaluation = _Evaluation(manifest, store, splits, scorer, config)
    models: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    references: list[dict[str, Any]] = []
    with_labels: dict[str, dict[str, Any]] = {}
    in_tables = [each for each in candidates if each.label_share is None]
    curve = [each for each in candidates if each.label_share is not None]
    with pq.ParquetWriter(out / PREDICTIONS, predictions_schema(test.classes)) as writer:
        majority = np.full(len(test), training.majority, dtype=np.int64)
        prior = np.tile(training.prior, (len(test), 1))
        writer.write_table(_table(BASELINE, test, prior, majority))
        baseline = scorer.score_baseline()
        for number, candidate in enumerate(in_tables, start=1):
            model, prediction = evaluation.score_candidate(candidate)
            model["not_trained"] = why_not_trained(model, baseline)
            models.append(model)
            predictions.append(prediction)
            writer.write_table(_table(candidate.name, test, prediction.probabilities))
            logger.progress(number, len(candidates), "models")
        for number, candidate in enumerate(curve, start=1 + len(in_tables)):
            with_labels[candidate.name] = evaluation.score_seeds(candidate)
            logger.progress(number, len(candidates), "models")
        for modality in _probed([model["modality"] for model in models]):
            probe, prediction = evaluation.score_probe(modality)
            references.append(probe)
            writer.write_table(_table(prediction.name, test, prediction.probabilities))
    reasons = {model["name"]: model["not_trained"] for model in models if model["not_trained"]}
    comparisons = scorer.compare_all(predictions, reasons)
    floor = describe_floor(models, references, baseline, scorer.difference, config.confidence)
    write_json(
        out / METRICS,
        {
            "format": FORMAT,
            "test": scorer.describe_test_set(),
            "class_counts": {name: _class_counts(split) for name, split in splits.items()},
            "validation": _describe_validation(splits["valid"], split_by),
            "confidence": config.confidence,
            "resamples": config.resamples,
            "seed": seed,
            "encoders": evaluation.encoders,
            "classes": list(test.classes),
            "baseline": baseline,
            "references": references,
            "models": models,
            "floor": floor,
            "distillation": comparisons,
            "label_shares": describe_label_shares(curve, with_labels, baseline, scorer),
            "device": device_name(evaluation.device),
            "latency": evaluation.latency.describe() if evaluation.latency else None,
        },
    )
    return {
        "headline": {model["name"]: single_numbers(model) for model in (baseline, *models)},
        "floor": floor["sentence"],
        "distillation": [comparison["sentence"] for comparison in comparisons],
        "not_trained": reasons,
    }


def _probed(modalities: Sequence[Modality]) -> Sequence[Modality]:
    """Modalities of the probes: those of the models, and all where a model reads both.

    A head that reads both and loses to a probe that reads one is not worth its second encoder.
    """
    distinct = list(dict.fromkeys(modalities))
    if not distinct or "multimodal" in distinct:
        distinct += [each for each in get_args(Modality) if each not in distinct]
    return distinct


def _class_counts(clips: Utterances) -> dict[str, int]:
    counts = np.bincount(clips.truth[clips.truth >= 0], minlength=len(clips.classes))
    return {name: int(count) for name, count in zip(clips.classes, counts, strict=True)}


def _describe_validation(valid: Utterances, split_by: str) -> dict[str, Any]:
    """Labelled clips and groups of the set on which epochs, temperatures and winners are chosen."""
    clusters = choose_clusters(valid.groups, valid.sessions, valid.speakers, split_by)
    groups = len({*valid.groups})
    return {
        "clips": int((valid.truth >= 0).sum()),
        "groups": groups,
        "unit": clusters.only or clusters.unit,
    }


def _check_names(candidates: Sequence[Candidate]) -> None:
    names = [candidate.name for candidate in candidates]
    for candidate in candidates:
        if names.count(candidate.name) > 1 or candidate.name == BASELINE:
            raise MultistillError(
                f"two models to evaluate are called `{candidate.name}`; rename one"
            )
        if candidate.compare_to is not None and candidate.compare_to not in names:
            raise MultistillError(
                f"the model `{candidate.name}` is to be compared with `{candidate.compare_to}`, "
                f"which is not among the models to evaluate: {', '.join(names)}"
            )


class _Evaluation:
    """Scores candidates and probes on one test set with one set of encoders."""

    def __init__(
        self,
        manifest: Path,
        store: FeatureStore,
        splits: Mapping[str, Utterances],
        scorer: Scorer,
        config: EvaluationConfig,
    ) -> None:
        self.manifest = manifest
        self.store = store
        self.train, self.valid, self.test = (splits[name] for name in ("train", "valid", "test"))
        self.scorer = scorer
        self.bins = config.calibration_bins
        self.device = default_device()
        self.encoders = describe_encoders(store.info)
        self.latency: EncoderLatency | None = None
        if config.latency_clips:
            self.latency = EncoderLatency(
                manifest, store.info, self.test.ids, config.latency_clips, self.device
            )

    def score_candidate(self, candidate: Candidate) -> tuple[dict[str, Any], Prediction]:
        """A model's entry of metrics.json, and its predictions."""
        loaded = self._load(candidate)
        prediction = self._predict(loaded)
        model = loaded.describe(self.encoders) | self.scorer.score(prediction)
        if candidate.repeats:
            repeats = [
                self._load(replace(candidate, folders=[folder])) for folder in candidate.repeats
            ]
            others = [repeat.probabilities(self.test.ids) for repeat in repeats]
            model["seeds"] = self.scorer.score_seeds(
                candidate.name, [prediction.probabilities, *others]
            )
            model["training"] += [entry for repeat in repeats for entry in repeat.trainings]
        if candidate.role == "teacher":
            model["in_sample"] = self._in_sample_calibration(loaded)
        if self.latency is not None:
            model |= _latency(self.latency, loaded)
        return model, prediction

    def score_seeds(self, candidate: Candidate) -> dict[str, Any]:
        """Scores over the seeds of a candidate and what they were trained with, nothing else."""
        loaded = [
            self._load(replace(candidate, folders=[folder]))
            for folder in (*candidate.folders, *candidate.repeats)
        ]
        probabilities = [model.probabilities(self.test.ids) for model in loaded]
        return {
            "seeds": self.scorer.score_seeds(candidate.name, probabilities),
            "training": [entry for model in loaded for entry in model.trainings],
        }

    def score_probe(self, modality: Modality) -> tuple[dict[str, Any], Prediction]:
        """A linear probe's entry of metrics.json, and its predictions."""
        probe, probabilities = probe_baseline(
            modality, self.store, self.train, self.valid, self.test, self.encoders
        )
        prediction = Prediction(probe["name"], probabilities)
        return probe | self.scorer.score(prediction), prediction

    def _load(self, candidate: Candidate) -> LoadedModel:
        return LoadedModel(candidate, self.store, self.manifest, self.device)

    def _predict(self, loaded: LoadedModel) -> Prediction:
        """Predictions on test, unscaled and with a temperature fitted on validation."""
        name, compare_to = loaded.candidate.name, loaded.candidate.compare_to
        probabilities = loaded.probabilities(self.test.ids)
        temperature = None
        if len(self.valid):
            logits = _logits(loaded.probabilities(self.valid.ids))
            temperature = fit_temperature(logits, self.valid.truth)
        calibrated = softmax(_logits(probabilities) / temperature) if temperature else None
        return Prediction(name, probabilities, calibrated, temperature, compare_to)

    def _in_sample_calibration(self, loaded: LoadedModel) -> dict[str, Any]:
        """A teacher's calibration on its training clips (at most `MAX_IN_SAMPLE_CLIPS`)."""
        rows = evenly_spaced(len(self.train), MAX_IN_SAMPLE_CLIPS)
        probabilities = loaded.probabilities([self.train.ids[row] for row in rows])
        return calibration_summary(
            self.train.truth[rows], probabilities, self.train.shares[rows], self.bins
        )


def _logits(probabilities: DoubleArray) -> DoubleArray:
    """Logits up to a constant, to which softmax is invariant; defined for an ensemble too."""
    return np.asarray(np.log(np.maximum(probabilities, EPS)))


def _latency(encoder_latency: EncoderLatency, loaded: LoadedModel) -> dict[str, Any]:
    spec, head_ms = loaded.spec, loaded.head_ms(encoder_latency.ids)
    end_to_end_ms = encoder_latency.end_to_end_ms(spec.modality, head_ms, spec.layers_read)
    latency: dict[str, Any] = {"latency_ms": percentiles(head_ms)}
    if end_to_end_ms is not None:
        latency["latency_end_to_end_ms"] = percentiles(end_to_end_ms)
        latency["real_time_factor"] = encoder_latency.real_time_factor(end_to_end_ms)
    return latency


def _table(
    name: str, clips: Utterances, probabilities: DoubleArray, predicted: IntArray | None = None
) -> pa.Table:
    """Rows of predictions.parquet; `predicted` defaults to the distributions' mode."""
    labels = probabilities.argmax(axis=1) if predicted is None else predicted
    flat = pa.array(probabilities.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "utterance_id": clips.ids,
            "model": [name] * len(clips),
            "label": [clips.classes[label] for label in labels],
            "distribution": pa.FixedSizeListArray.from_arrays(flat, len(clips.classes)),
            "truth": [clips.classes[label] if label >= 0 else None for label in clips.truth],
            "session": clips.sessions,
            "speaker": clips.speakers,
        },
        schema=predictions_schema(clips.classes),
    )
