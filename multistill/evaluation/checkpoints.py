"""Any number of model folders scored on one set of clips, as one table.

A model that cannot be scored on these clips, because it tells apart other classes or was trained
on other encoders, gets a reason and does not keep the others from their row. What a model was
trained and chosen on is looked up, so that a score on such clips is never shown as a test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multistill.config import EvaluationConfig
from multistill.corpora.manifest import read_classes
from multistill.errors import MultistillError
from multistill.evaluation.candidates import Candidate, LoadedModel, describe_encoders, device_name
from multistill.evaluation.scoring import Prediction, Scorer
from multistill.evaluation.utterances import (
    majority_of,
    read_training_statistics,
    read_utterances,
)
from multistill.features.cache import open_store
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.latency import percentiles
from multistill.models.files import CONFIG, WEIGHTS, read_model_config
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.typing import DoubleArray, IntArray

ENCODERS = {"audio": ("speech",), "text": ("text",), "multimodal": ("speech", "text")}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder.

    Attributes:
        name: unique among those that are scored together.
        known: ids of the clips that it was trained or chosen on; None where nobody knows.
        run_id: of MLflow.
    """

    name: str
    folder: Path
    known: frozenset[str] | None = None
    run_id: str | None = None


def model_folders(root: Path) -> Iterator[Path]:
    """Folders at or below `root` with config.json and model.safetensors, in a fixed order.

    Hidden folders are left out: a workspace builds artifacts in them.
    """
    for file in sorted(root.rglob(WEIGHTS)):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if not hidden and (file.parent / CONFIG).is_file():
            yield file.parent


def score_checkpoints(
    checkpoints: Sequence[Checkpoint],
    manifest: Path,
    features: Path,
    config: EvaluationConfig,
    seed: int = 0,
    split_by: str = "session",
    logger: RunLogger | None = None,
) -> dict[str, Any]:
    """Score models on the test split of a manifest.

    Args:
        manifest, features: folders.
        seed: of the resamples.
        split_by: what the split keeps together, the unit of the intervals.

    Returns:
        JSON values: `test` (the clips), `classes`, `confidence`, `device`, `encoders`, `baseline`
        (entry of metrics.json with `published`), `models` and `refused` (`name`, `folder`,
        `reason`). A model has `name`, `folder`, `mlflow_run_id`, `role`, `modality`, `metrics`
        with intervals, `published` (`published_figures`), `params_trainable`,
        `params_end_to_end`, `inference_s` (all clips, states in memory), `latency_ms` (the head,
        one clip at a time; None if `config.latency_clips` is 0) and `known_clips` (test clips
        that it was trained or chosen on; None if unknown).

    Raises:
        MultistillError: no test clip has features, or no training clip has a label.
    """
    logger = logger or NullLogger()
    store, device = open_store(features), default_device()
    test = read_utterances(manifest, "test", store)
    if not len(test):
        raise MultistillError(f"the test split of {manifest} has no clip with features")
    classes = len(test.classes)
    majority = majority_of(test, read_training_statistics(manifest))
    scorer = Scorer(test, majority, config, seed, split_by)
    encoders = describe_encoders(store.info)
    models: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        try:
            check(checkpoint.folder, read_classes(manifest), store)
            loaded = LoadedModel(
                Candidate(checkpoint.name, "checkpoint", [checkpoint.folder]),
                store,
                manifest,
                device,
                read_model_config(checkpoint.folder)["spec"].get("dimensions", ()),
            )
        except MultistillError as error:
            refused.append(_identity(checkpoint) | {"reason": str(error)})
            continue
        started = time.perf_counter()
        probabilities = loaded.probabilities(test.ids)
        seconds = time.perf_counter() - started
        scored = scorer.score(Prediction(checkpoint.name, probabilities))
        timed = (
            test.ids[:: max(1, len(test) // config.latency_clips)] if config.latency_clips else []
        )
        entry = loaded.describe(encoders)
        known = checkpoint.known
        models.append(
            {
                **_identity(checkpoint),
                "role": read_model_config(checkpoint.folder)["role"],
                **{
                    key: entry[key] for key in ("modality", "params_trainable", "params_end_to_end")
                },
                "metrics": scored["metrics"],
                "published": published_figures(np.array(scored["confusion"], float)),
                "inference_s": seconds,
                "latency_ms": percentiles(loaded.head_ms(timed[: config.latency_clips]))
                if timed
                else None,
                "known_clips": None if known is None else sum(name in known for name in test.ids),
            }
        )
        logger.progress(number, len(checkpoints), "models")
    return {
        "test": scorer.describe_test_set(),
        "classes": list(test.classes),
        "confidence": config.confidence,
        "device": device_name(device),
        "encoders": encoders,
        "baseline": scorer.score_baseline()
        | {"published": published_figures(_confusion(test.truth, majority.label, classes))},
        "models": models,
        "refused": refused,
    }


def _confusion(truth: IntArray, predicted: IntArray, classes: int) -> DoubleArray:
    counts = np.zeros((classes, classes))
    labelled = truth >= 0
    np.add.at(counts, (truth[labelled], predicted[labelled]), 1.0)
    return counts


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "mlflow_run_id": checkpoint.run_id,
    }


def check(folder: Path, classes: Sequence[str], store: FeatureStore) -> None:
    """Refuse a model that does not fit the clips.

    Raises:
        MultistillError: it tells apart other classes, or was trained on states of another
            encoder or with other settings; or its files are damaged.
    """
    config = read_model_config(folder)
    if not config["labels"]:
        raise MultistillError("it tells apart no classes, only dimensions, and classes are scored")
    if list(config["labels"]) != list(classes):
        raise MultistillError(
            f"it tells apart {', '.join(config['labels'])}, and the clips have "
            f"{', '.join(classes)}, in this order"
        )
    stored = store.encoders()
    for kind in ENCODERS[config["spec"]["modality"]]:
        dimension = store.audio_dim if kind == "speech" else store.text_dim
        trained = config["audio_dim" if kind == "speech" else "text_dim"]
        own = config["encoders"].get(kind, {})
        difference = None
        if own:
            difference = first_difference(_of_states(own), _of_states(stored.get(kind, {})))
        if difference is None and trained != dimension:
            difference = ("dimension", trained, dimension)
        if difference is not None:
            key, of_model, of_clips = difference
            raise MultistillError(
                f"it was trained on other {kind} states: {key} is {of_model}, and {of_clips} in "
                f"{store.folder}"
            )


def _of_states(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the states in a store: not how an encoder is trained on them."""
    settings = {key: each for key, each in encoder.get("settings", {}).items() if key != "train"}
    return {**{k: v for k, v in encoder.items() if k != "training"}, "settings": settings}


def first_difference(
    own: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """Dotted key and both values of the first entry that is not the same; None if there is none."""
    for key in dict.fromkeys([*own, *other]):
        first, second = own.get(key), other.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            if (found := first_difference(first, second, f"{prefix}{key}.")) is not None:
                return found
        elif first != second:
            return f"{prefix}{key}", first, second
    return None


def published_figures(confusion: DoubleArray) -> dict[str, float | None]:
    """The columns of Multi-Still's result table that are not among our metrics.

    Args:
        confusion: counts [truth, prediction].

    Returns:
        `recall`, `precision` and `f1`, each the mean over the classes weighted by their clips
        (recall is then the accuracy), and `recall_sd` and `f1_sd`, the deviations over the
        classes that occur (population, as NumPy's default).
    """
    clips = confusion.sum(axis=1)
    if not clips.sum():
        return dict.fromkeys(("recall", "precision", "f1", "recall_sd", "f1_sd"))
    correct, answered = np.diag(confusion), confusion.sum(axis=0)
    recall = correct / np.maximum(clips, 1)
    precision = correct / np.maximum(answered, 1)
    f1 = 2 * correct / np.maximum(clips + answered, 1)
    weights, present = clips / clips.sum(), clips > 0
    return {
        "recall": float(weights @ recall),
        "precision": float(weights @ precision),
        "f1": float(weights @ f1),
        "recall_sd": float(recall[present].std()),
        "f1_sd": float(f1[present].std()),
    }
