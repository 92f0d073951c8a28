"""The test set is touched here, once: every model's answers, and the facts drawn from them.

predictions.parquet   utterance_id, model, label (predicted), distribution (7 shares),
                      truth (null on a tie), session, speaker; the baseline included
metrics.json          everything that the report and the terminal table show
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from multistill.config import CLASSES, EvaluationConfig
from multistill.distillation.targets import predict_logits
from multistill.errors import MultistillError
from multistill.evaluation.calibration import fit_temperature
from multistill.evaluation.clips import MANIFEST, Clips, read_clips, read_training
from multistill.evaluation.latency import percentiles, time_each
from multistill.evaluation.metrics import SMALLEST, Array, Labels, calibration_of, softmax
from multistill.evaluation.scoring import BASELINE, Prediction, Scorer, compare_all
from multistill.features.batches import collate
from multistill.features.store import FeatureStore
from multistill.models.build import EmotionModel, count_parameters
from multistill.models.context import DialogueContext
from multistill.models.files import load_model
from multistill.watch import Silent, Watch
from multistill.workspace import write_json

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


@dataclass(frozen=True)
class ModelEntry:
    """A model to score.

    Attributes:
        role: `teacher`, `student` or `control`.
        folders: of `save_model`; several are an ensemble (mean of probabilities).
        compare_to: name of the entry it is judged against (a student's control).
        max_frames: audio frames it reads, as in its training.
        params_note: shown beside its parameters.
    """

    name: str
    role: str
    folders: Sequence[str | Path]
    compare_to: str | None = None
    max_frames: int | None = None
    params_note: str | None = None
    mlflow_run_id: str | None = None


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
    test = read_clips(manifest, "test", store)
    if not len(test):
        raise MultistillError(
            f"the test split of {manifest} has no clip with features, so nothing can be "
            "scored; raise `split.test` or look into quarantine.parquet of the features"
        )
    valid = read_clips(manifest, "valid", store)
    training = read_training(manifest)
    scorer = Scorer(test, training, config, seed)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "test": scorer.facts(),
        "confidence": config.confidence,
        "resamples": config.resamples,
        "seed": seed,
        "encoders": encoders(store.info),
        "classes": list(CLASSES),
        "baseline": scorer.baseline(),
        "models": [],
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts["device"] = device_name(device)
    predictions: list[Prediction] = []
    with pq.ParquetWriter(out / PREDICTIONS, SCHEMA) as writer:
        prior = np.tile(training.prior, (len(test), 1))
        constant = np.full(len(test), training.majority, dtype=np.int64)
        writer.write_table(_table(BASELINE, test, prior, constant))
        for number, entry in enumerate(models, start=1):
            members = [load_model(Path(folder)).to(device) for folder in entry.folders]
            context = _context(members, store, manifest)
            answering = _Answering(members, store, device, entry.max_frames, context)
            prediction = _predict(entry, answering, test, valid)
            predictions.append(prediction)
            writer.write_table(_table(entry.name, test, prediction.probabilities))
            described = _describe(entry, members, facts["encoders"]) | scorer.model(prediction)
            if entry.role == "teacher":
                described["in_sample"] = _in_sample(manifest, store, answering, config)
            if config.latency_clips:
                described["latency_ms"] = answering.latency(test.ids, config.latency_clips)
            facts["models"].append(described)
            watch.progress(number, len(models), "models")
    facts["distillation"] = compare_all(scorer, predictions)
    write_json(out / METRICS, facts)
    return {
        "headline": {
            model["name"]: {name: score["value"] for name, score in model["metrics"].items()}
            for model in (facts["baseline"], *facts["models"])
        },
        "distillation": [line["sentence"] for line in facts["distillation"]],
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


class _Answering:
    """An ensemble (of one, mostly) that answers from a feature store."""

    def __init__(
        self,
        members: Sequence[EmotionModel],
        store: FeatureStore,
        device: torch.device,
        max_frames: int | None,
        context: DialogueContext | None,
    ) -> None:
        self.members = members
        self.context = context
        self.store = store
        self.device = device
        self.max_frames = max_frames

    def probabilities(self, ids: list[str]) -> Array:
        """Mean of the members' distributions, [N, 7]."""
        parts = [
            softmax(
                predict_logits(
                    model,
                    self.store,
                    ids,
                    device=self.device,
                    max_frames=self.max_frames,
                    context=self.context,
                )
            )
            for model in self.members
        ]
        return np.asarray(np.mean(parts, axis=0))

    def latency(self, ids: Sequence[str], clips: int) -> dict[str, float]:
        """Milliseconds of the head alone, one clip at a time, states already in memory."""
        step = max(1, len(ids) // clips)
        given = [self._inputs(name) for name in ids[::step][:clips]]
        for model in self.members:
            model.eval()

        def answer(inputs: tuple[torch.Tensor, ...]) -> None:
            for model in self.members:
                model(*inputs)

        return percentiles(time_each(answer, given, self.device))

    def _inputs(self, name: str) -> tuple[torch.Tensor, ...]:
        batch = collate(self.store, [name], self.max_frames).to(self.device)
        states = (batch.audio, batch.audio_mask, batch.text, batch.text_mask)
        if self.context is None:
            return states
        return *states, *(part.to(self.device) for part in self.context.batch([name]))


def _context(
    members: Sequence[EmotionModel], store: FeatureStore, manifest: Path
) -> DialogueContext | None:
    """Previous turns, for models that read them."""
    turns = max(model.spec.context_turns for model in members)
    if not turns:
        return None
    past = pq.read_table(manifest / MANIFEST, columns=["utterance_id", "dialogue", "turn"])
    return DialogueContext(store, past.to_pydict(), turns)


def _predict(entry: ModelEntry, answering: _Answering, test: Clips, valid: Clips) -> Prediction:
    probabilities = answering.probabilities(test.ids)
    found = Prediction(entry.name, probabilities, compare_to=entry.compare_to)
    if not len(valid):
        return found
    temperature = fit_temperature(_logits(answering.probabilities(valid.ids)), valid.truth)
    if temperature is None:
        return found
    calibrated = softmax(_logits(probabilities) / temperature)
    return replace(found, calibrated=calibrated, temperature=temperature)


def _logits(probabilities: Array) -> Array:
    """Logits up to a constant, which no softmax sees; defined for an ensemble's mean too."""
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _in_sample(
    manifest: Path, store: FeatureStore, answering: _Answering, config: EvaluationConfig
) -> dict[str, Any]:
    """A teacher's calibration on the clips it was trained on (at most `IN_SAMPLE_CLIPS`)."""
    train = read_clips(manifest, "train", store)
    chosen = np.linspace(0, len(train) - 1, min(len(train), IN_SAMPLE_CLIPS)).astype(int)
    probabilities = answering.probabilities([train.ids[row] for row in chosen])
    return calibration_of(
        train.truth[chosen], probabilities, train.shares[chosen], config.calibration_bins
    )


def encoders(info: Mapping[str, Any]) -> dict[str, Any]:
    """Per modality: name, whether its weights were trained (None: it has none), parameters."""
    return {
        modality: {key: info[modality].get(key) for key in ("name", "trained", "params")}
        for modality in ("speech", "text")
    }


def _describe(
    entry: ModelEntry, members: Sequence[EmotionModel], used: dict[str, Any]
) -> dict[str, Any]:
    spec = members[0].spec
    head = sum(count_parameters(model) for model in members)
    needed = [
        used[modality]["params"]
        for modality, reads in (("speech", spec.reads_audio), ("text", spec.reads_text))
        if reads
    ]
    known = all(count is not None for count in needed)
    return {
        "name": entry.name,
        "role": entry.role,
        "modality": spec.modality,
        "params_trainable": head,
        "params_end_to_end": head + sum(needed) if known else None,
        "params_note": entry.params_note,
        "members": len(members),
        "compare_to": entry.compare_to,
        "mlflow_run_id": entry.mlflow_run_id,
    }


def device_name(device: torch.device) -> str:
    """What latency was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU (threads: {torch.get_num_threads()})"


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
