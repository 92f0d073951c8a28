"""Score every candidate on the test set, which no other stage reads.

predictions.parquet   utterance_id, model, label (predicted), distribution (a share per class),
                      truth (null on a tie), session, speaker; baselines included. Of a job
                      with dimensions also e.g. valence (predicted) and valence_truth
metrics.json          everything that the report and the terminal table show
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import EvaluationConfig
from multistill.corpora.manifest import with_classes
from multistill.errors import MultistillError
from multistill.evaluation import cross_corpus
from multistill.evaluation.candidates import (
    MAX_PROBE_CLIPS,
    Candidate,
    describe_encoders,
    device_name,
    spec_of_ensemble,
)
from multistill.evaluation.dimensions import DimensionScores, dimension_columns, probe_dimensions
from multistill.evaluation.dimensions_alone import evaluate_dimensions
from multistill.evaluation.figures import single_numbers
from multistill.evaluation.floor import describe_floor
from multistill.evaluation.folds import (
    EvaluatedFold,
    Evaluation,
    FoldData,
    describe_fold,
    describe_validation,
    open_fold,
)
from multistill.evaluation.human_ceiling import describe_human_ceiling
from multistill.evaluation.inputs import ReferenceInputs
from multistill.evaluation.label_shares import describe_label_shares
from multistill.evaluation.layer_probes import describe_layers
from multistill.evaluation.paired import PREDICTIONS
from multistill.evaluation.repetitions import PooledClips
from multistill.evaluation.robustness import Robustness
from multistill.evaluation.scoring import BASELINE, Prediction, Scorer
from multistill.evaluation.trained import why_not_trained
from multistill.evaluation.utterances import Utterances
from multistill.features.cache import open_store
from multistill.features.functionals import Functionals
from multistill.models.files import read_model_config
from multistill.models.spec import Modality, ModelSpec
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.typing import DoubleArray, IntArray
from multistill.workspace import write_json

__all__ = ["METRICS", "PREDICTIONS", "Candidate", "EvaluatedFold", "evaluate"]

METRICS = "metrics.json"
FORMAT = 1


def predictions_schema(classes: Sequence[str], dimensions: Sequence[str] = ()) -> pa.Schema:
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
    fields += [
        pa.field(column, pa.float32()) for name in dimensions for column in (name, f"{name}_truth")
    ]
    return pa.schema(fields, metadata=with_classes(classes))


def evaluate(
    folds: Sequence[EvaluatedFold],
    features: Path,
    config: EvaluationConfig,
    out: Path,
    logger: RunLogger | None = None,
    seed: int = 0,
    split_by: str = "session",
    dimensions: Sequence[str] = (),
    with_classes: bool = True,
    inputs: ReferenceInputs | None = None,
) -> dict[str, Any]:
    """Score models on the test split; write predictions.parquet and metrics.json into `out`.

    Args:
        folds: one for a holdout. Under cross-validation every fold has candidates of the same
            names; each predicts the clips that its fold tests, and all clips are scored together.
        features: folder of the feature store.
        seed: of the bootstrap resamples.
        split_by: what the split keeps together, which names the unit of the intervals.
        dimensions: that the models predict.
        with_classes: whether they predict classes.
        inputs: of references that other steps have prepared.

    Returns:
        a summary: `headline` (metrics by model), `floor` (a sentence), `distillation` (sentences),
        `not_trained` (why, by model).

    Raises:
        MultistillError: no test clip has features, two candidates share a name, or `compare_to`
            names no candidate.
    """
    logger = logger or NullLogger()
    inputs = inputs or ReferenceInputs()
    candidates = folds[0].candidates
    _check_names(candidates)
    store = open_store(features)
    parts = [open_fold(fold, store, dimensions, with_classes) for fold in folds]
    tests = [part.test for part in parts]
    tested = PooledClips.of(tests, [part.repetition for part in parts])
    test = tested.clips
    if not len(test):
        raise MultistillError(
            f"the test split of {folds[0].manifest} has no clip with features, so nothing can be "
            "scored; raise `split.test` or look into quarantine.parquet of the features"
        )
    if not with_classes:
        modalities = _probed([_modality(candidate) for candidate in candidates])
        metrics, summary = evaluate_dimensions(
            parts,
            tested,
            store,
            config,
            out / PREDICTIONS,
            logger,
            seed,
            split_by,
            dimensions,
            modalities,
        )
        write_json(out / METRICS, {"format": FORMAT, **metrics})
        return summary
    trainings = [part.training for part in parts if part.training is not None]
    majority = tested.majority(trainings, tests)
    crossed = tested.fold if len(parts) > 1 else None
    cells = cross_corpus.cells(parts)
    scorer = Scorer(test, majority, config, seed, split_by, crossed, cells)
    robustness = Robustness(inputs.distorted, store, test.ids) if inputs.distorted else None
    evaluation = Evaluation(parts, tested, store, scorer, config, dimensions, robustness)
    values = DimensionScores(
        dimensions,
        [(part.test, part.train) for part in parts],
        scorer.clusters,
        scorer.resampling,
        config.confidence,
        None if crossed is None else crossed[0],
    )
    schema = predictions_schema(test.classes, dimensions)
    models: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    references: list[dict[str, Any]] = []
    with_labels: dict[str, dict[str, Any]] = {}
    in_tables = [each for each in candidates if each.label_share is None]
    curve = [each for each in candidates if each.label_share is not None]
    with pq.ParquetWriter(out / PREDICTIONS, schema) as writer:
        means = values.means if dimensions else None
        writer.write_table(
            _table(schema, BASELINE, test, majority.prior, means, predicted=majority.label)
        )
        baseline = scorer.score_baseline()
        for number, candidate in enumerate(in_tables, start=1):
            model, prediction = evaluation.score_candidate(candidate)
            model["not_trained"] = why_not_trained(model, baseline)
            models.append(model)
            predictions.append(prediction)
            values.score_model(model, prediction.dimensions)
            first = prediction.dimensions[0]
            writer.write_table(
                _table(schema, candidate.name, test, prediction.probabilities, first)
            )
            logger.progress(number, len(candidates), "models")
        for number, candidate in enumerate(curve, start=1 + len(in_tables)):
            with_labels[candidate.name] = evaluation.score_seeds(candidate)
            logger.progress(number, len(candidates), "models")
        modalities = _probed([model["modality"] for model in models])
        for modality in modalities:
            probe, prediction = evaluation.score_probe(modality)
            references.append(probe)
            regressed = None
            if dimensions:
                described, regressed = probe_dimensions(
                    modality,
                    evaluation.states,
                    parts,
                    MAX_PROBE_CLIPS,
                    describe_encoders(evaluation.states.info),
                )
                values.score_model(described, [regressed])
            writer.write_table(
                _table(schema, prediction.name, test, prediction.probabilities, regressed)
            )
        probes = list(references)
        if inputs.functionals is not None:
            for entry, prediction in evaluation.score_functionals(Functionals(inputs.functionals)):
                references.append(entry)
                writer.write_table(_table(schema, prediction.name, test, prediction.probabilities))
        once = [part for part in parts if part.repetition == 0]
        layers = describe_layers(store, once, modalities, scorer)
    reasons = {model["name"]: model["not_trained"] for model in models if model["not_trained"]}
    comparisons = scorer.compare_all(predictions, reasons)
    for each in in_tables:
        if each.compare_to is not None:
            values.compare(each.name, each.compare_to)
    values.judge()
    floor = describe_floor(models, probes, baseline, scorer.difference, config.confidence)
    write_json(
        out / METRICS,
        {
            "format": FORMAT,
            "test": scorer.describe_test_set(),
            "class_counts": _class_counts(parts),
            "validation": describe_validation(parts, _labelled, split_by),
            "folds": [] if crossed is None else [describe_fold(part, _labelled) for part in parts],
            "cross_corpus": cross_corpus.matrices(cells, [baseline, *references, *models]),
            "confidence": config.confidence,
            "resamples": config.resamples,
            "repetitions": tested.repetitions,
            "seed": seed,
            "encoders": evaluation.encoders,
            "classes": list(test.classes),
            "baseline": baseline,
            "references": references,
            "human_ceiling": describe_human_ceiling(
                [part.manifest for part in parts], inputs.rated, scorer
            ),
            "layers": layers,
            "models": models,
            "dimensions": values.describe(),
            "robustness": robustness.describe(models, scorer) if robustness else None,
            "floor": floor,
            "distillation": comparisons,
            "label_shares": describe_label_shares(curve, with_labels, baseline, scorer),
            "device": device_name(evaluation.device),
            "latency": evaluation.latency.describe() if evaluation.latency else None,
        },
    )
    return {
        "headline": {
            baseline["name"]: single_numbers(baseline),
            **{m["name"]: single_numbers(m) | values.numbers(m["name"]) for m in models},
        },
        "floor": floor["sentence"],
        "distillation": [*(each["sentence"] for each in comparisons), *values.sentences()],
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


def _modality(candidate: Candidate) -> Modality:
    specs = [read_model_config(Path(folder))["spec"] for folder in candidate.folders]
    return spec_of_ensemble([ModelSpec.from_dict(spec) for spec in specs]).modality


def _class_counts(parts: Sequence[FoldData]) -> dict[str, dict[str, int]]:
    """Labelled clips by part and class; of several folds, the fewest, but all that are tested."""

    def counts(clips: Utterances) -> IntArray:
        return np.bincount(clips.truth[clips.truth >= 0], minlength=len(clips.classes))

    tested = Utterances.joined([part.test for part in parts])
    once = np.unique(tested.ids, return_index=True)[1]
    truth = tested.truth[once]

    found = {
        "train": np.min([counts(part.train) for part in parts], axis=0),
        "valid": np.min([counts(part.valid) for part in parts], axis=0),
        "test": np.bincount(truth[truth >= 0], minlength=len(tested.classes)),
    }
    classes = parts[0].test.classes
    return {
        name: {label: int(count) for label, count in zip(classes, values, strict=True)}
        for name, values in found.items()
    }


def _labelled(clips: Utterances) -> int:
    return int((clips.truth >= 0).sum())


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


def _table(
    schema: pa.Schema,
    name: str,
    clips: Utterances,
    probabilities: DoubleArray,
    dimensions: DoubleArray | None = None,
    predicted: IntArray | None = None,
) -> pa.Table:
    """Rows of predictions.parquet; `predicted` defaults to the distributions' mode.

    Of several repetitions, the first.

    Args:
        dimensions: predicted values [N, D]; null where the model has none.
    """
    if probabilities.ndim > 2:
        probabilities, predicted = probabilities[0], None if predicted is None else predicted[0]
    labels = probabilities.argmax(axis=1) if predicted is None else predicted
    flat = pa.array(probabilities.astype(np.float32).reshape(-1))
    names = [each.removesuffix("_truth") for each in schema.names if each.endswith("_truth")]
    if dimensions is None:
        dimensions = np.full((len(clips), len(names)), np.nan)
    values = dimension_columns(names, dimensions, clips.dimensions)
    return pa.table(
        {
            "utterance_id": clips.ids,
            "model": [name] * len(clips),
            "label": [clips.classes[label] for label in labels],
            "distribution": pa.FixedSizeListArray.from_arrays(flat, len(clips.classes)),
            "truth": [clips.classes[label] if label >= 0 else None for label in clips.truth],
            "session": clips.sessions,
            "speaker": clips.speakers,
            **values,
        },
        schema=schema,
    )
