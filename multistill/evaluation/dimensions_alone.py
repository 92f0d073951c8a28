"""Evaluation of a job that has dimensions and no classes; see `multistill.evaluation.evaluate`.

What a job with classes decides by macro F1, this one decides by the mean CCC over its dimensions:
the floor, whether a model learnt anything, and whether distillation helped. Everything that is of
classes (confusions, calibration, slices) is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import EvaluationConfig
from multistill.evaluation.candidates import MAX_PROBE_CLIPS, describe_encoders, device_name
from multistill.evaluation.comparisons import judge_family
from multistill.evaluation.dimensions import (
    BASELINE,
    DimensionScorer,
    DimensionScores,
    dimension_columns,
    probe_dimensions,
)
from multistill.evaluation.figures import PRIMARY_DIMENSION_METRIC, single_numbers
from multistill.evaluation.floor import describe_floor
from multistill.evaluation.folds import Evaluation, FoldData, describe_fold, describe_validation
from multistill.evaluation.repetitions import PooledClips
from multistill.evaluation.trained import why_not_trained
from multistill.evaluation.utterances import Utterances
from multistill.features.store import FeatureStore
from multistill.metrics.intervals import Resampling, choose_clusters
from multistill.models.spec import Modality
from multistill.tracking.logger import RunLogger
from multistill.typing import DoubleArray


def evaluate_dimensions(
    parts: Sequence[FoldData],
    tested: PooledClips,
    store: FeatureStore,
    config: EvaluationConfig,
    predictions: Path,
    logger: RunLogger,
    seed: int,
    split_by: str,
    dimensions: Sequence[str],
    probed: Sequence[Modality],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the candidates of all folds; write `predictions`.

    Args:
        probed: modalities of the linear probes.

    Returns:
        the content of metrics.json without its format, and the summary.
    """
    test = tested.clips
    crossed = tested.fold[0] if len(parts) > 1 else None
    clusters = choose_clusters(test.groups, test.sessions, test.speakers, split_by)
    resampling = Resampling(clusters, config.resamples, seed)
    pairs = [(part.test, part.train) for part in parts]
    values = DimensionScores(dimensions, pairs, clusters, resampling, config.confidence, crossed)
    overall = DimensionScorer(
        "mean" if len(dimensions) > 1 else dimensions[0],
        test.dimensions,
        values.means,
        clusters,
        resampling,
        config.confidence,
        crossed,
    )
    evaluation = Evaluation(parts, tested, store, None, config, dimensions)
    candidates = list(parts[0].candidates.values())
    schema = _schema(dimensions)

    def table(name: str, predicted: DoubleArray) -> pa.Table:
        rows = {
            "utterance_id": test.ids,
            "model": [name] * len(test),
            "session": test.sessions,
            "speaker": test.speakers,
            **dimension_columns(dimensions, predicted, test.dimensions),
        }
        return pa.table(rows, schema=schema)

    models, references = [], []
    with pq.ParquetWriter(predictions, schema) as writer:
        writer.write_table(table(BASELINE, values.means))
        for number, candidate in enumerate(candidates, start=1):
            model, prediction = evaluation.score_candidate(candidate)
            model |= _scored(overall, values, model, prediction.dimensions)
            model["not_trained"] = why_not_trained(model, overall.baseline)
            models.append(model)
            writer.write_table(table(candidate.name, prediction.dimensions[0]))
            logger.progress(number, len(candidates), "models")
        for modality in probed:
            probe, predicted = probe_dimensions(
                modality,
                evaluation.states,
                parts,
                MAX_PROBE_CLIPS,
                describe_encoders(evaluation.states.info),
            )
            references.append(probe | _scored(overall, values, probe, [predicted]))
            writer.write_table(table(probe["name"], predicted))
    reasons = {model["name"]: model["not_trained"] for model in models if model["not_trained"]}
    for candidate in candidates:
        if candidate.compare_to is not None:
            for scorer in (overall, *values.scorers):
                scorer.compare(candidate.name, candidate.compare_to, reasons)
    values.judge()
    overall.comparisons = judge_family(overall.comparisons, config.confidence)
    floor = describe_floor(
        models,
        references,
        overall.baseline,
        overall.difference,
        config.confidence,
        PRIMARY_DIMENSION_METRIC,
    )
    known = np.isfinite(test.dimensions).any(axis=1)
    comparisons = overall.comparisons if len(dimensions) > 1 else []
    metrics = {
        "test": {
            "clips": len(test),
            "decided": int(known.sum()),
            "ties": 0,
            "without_features": test.without_features,
            "sessions": len(set(test.sessions)),
            "speakers": len(set(test.speakers)),
            "resampled": clusters.describe() | {"without_a_class": 0},
            "rare_classes": [],
        },
        "class_counts": {part: {} for part in ("train", "valid", "test")},
        "validation": describe_validation(parts, _rated, split_by),
        "folds": [] if crossed is None else [describe_fold(part, len) for part in parts],
        "confidence": config.confidence,
        "repetitions": tested.repetitions,
        "resamples": config.resamples,
        "seed": seed,
        "encoders": evaluation.encoders,
        "classes": [],
        "baseline": {"kind": "mean", **overall.baseline},
        "references": references,
        "human_ceiling": {"reason": "the job has no classes"},
        "layers": {},
        "models": models,
        "dimensions": values.describe(),
        "robustness": None,
        "cross_corpus": None,
        "floor": floor,
        "distillation": comparisons,
        "label_shares": [],
        "device": device_name(evaluation.device),
        "latency": evaluation.latency.describe() if evaluation.latency else None,
    }
    sentences = [each["sentence"] for each in comparisons]
    summary = {
        "headline": {
            m["name"]: {**single_numbers(m), **values.numbers(m["name"])}
            for m in (overall.baseline, *models)
        },
        "floor": floor["sentence"],
        "distillation": [*sentences, *values.sentences()],
        "not_trained": reasons,
    }
    return metrics, summary


def _schema(dimensions: Sequence[str]) -> pa.Schema:
    texts = ("utterance_id", "model", "session", "speaker")
    numbers = [column for name in dimensions for column in (name, f"{name}_truth")]
    return pa.schema(
        [pa.field(name, pa.string(), nullable=False) for name in texts]
        + [pa.field(name, pa.float32()) for name in numbers]
    )


def _scored(
    overall: DimensionScorer,
    values: DimensionScores,
    description: Mapping[str, Any],
    predicted: Sequence[DoubleArray],
) -> dict[str, Any]:
    """`metrics`, `folds` and, over several seeds, `seeds` of the mean over the dimensions."""
    values.score_model(description, predicted)
    found = overall.score(str(description["name"]), predicted)
    return {name: value for name, value in found.items() if value is not None or name == "folds"}


def _rated(clips: Utterances) -> int:
    return int(np.isfinite(clips.dimensions).any(axis=1).sum())
