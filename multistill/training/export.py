"""Exports the model folder of a finished training, which all later stages read."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multistill.inference.predict import predict_logits
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import distributions, log_probabilities, sigmoid
from multistill.metrics.detection import fit_thresholds
from multistill.metrics.majority import bars
from multistill.models.files import CONFIG, ModelInfo, Output, save_model
from multistill.models.joint import Model, build_model, load_trained_state
from multistill.training.checkpoint import Progress, best_weights
from multistill.training.data import TrainingData
from multistill.training.initial import initial_record
from multistill.training.parts import trained_parameters
from multistill.training.task import TrainingTask
from multistill.workspace import canonical, write_json

HISTORY = "history.json"
STATE = "state"


def state_folder(folder: Path) -> Path:
    """Folder of a running training's checkpoints, inside the folder of its result."""
    return folder / STATE


def is_finished(folder: Path) -> bool:
    return (folder / CONFIG).exists() and (folder / HISTORY).exists()


def export(task: TrainingTask, data: TrainingData, state_dir: Path, folder: Path) -> dict[str, Any]:
    """Write the weights, config.json and history.json from the best checkpoint.

    config.json is written last, so a folder that has it is complete.

    Returns:
        the entry `training` of config.json.
    """
    weights, progress = best_weights(state_dir)
    store = data.store
    model = build_model(task.spec, store.audio_dim, store.text_dim, task.load_encoders())
    load_trained_state(model, weights)
    losses = [epoch["train_loss"] for epoch in progress.history]
    scheduled = task.distillation is not None and task.distillation.schedule != "fixed"
    summary = {
        "name": task.name,
        "seed": task.seed,
        "learning_rate": task.train.learning_rate,
        "batch_size": task.train.batch_size,
        "budget": task.train.epochs,
        "epochs": progress.epoch,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "metric": task.train.metric,
        "loss": task.train.loss,
        "label_source": task.train.label_source,
        "tasks": dict(task.tasks),
        "dimension_loss": task.train.dimension_loss if task.spec.dimensions else None,
        "train_rows": len(data.train),
        "labelled_rows": len(data.train.labelled),
        "unlabelled_rows": data.train.unlabelled,
        "valid_rows": len(data.valid),
        # Under a schedule, the losses of two epochs are of different objectives.
        "train_loss": None if scheduled else [losses[0], losses[-1]],
        "validation": _validation(task, data, progress),
        "layer_weights": model.layer_weights(),
        "initial": initial_record(task.initial),
        "corpora": dict(task.corpora),
        "fisher_weight": task.fisher_weight if task.fisher else None,
        "trained_parameters": trained_parameters(model, task),
        "rows_without_features": data.without_features,
        "task": hashlib.sha256(canonical(task.identity()).encode()).hexdigest()[:16],
    }
    write_json(folder / HISTORY, {**summary, "epochs": progress.history})
    output = _output(task)
    temperature, thresholds = _on_validation(model, task, data, output)
    info = ModelInfo(
        role=task.role,
        labels=data.classes if task.spec.num_classes else (),
        output=output,
        max_frames=task.train.max_frames,
        encoders=store.encoders(),
        dtype=store.dtype,
        temperature=temperature,
        thresholds=thresholds,
        trained=task.encoders,
        training=summary,
    )
    save_model(model, folder, info)
    return summary


def _output(task: TrainingTask) -> Output:
    """Kind of the outputs, which the loss decides."""
    kinds: Mapping[str, Output] = {"mse": "shares", "one-vs-rest": "one-vs-rest"}
    return kinds.get(task.train.loss, "logits") if task.spec.num_classes else "logits"


def _on_validation(
    model: Model, task: TrainingTask, data: TrainingData, output: Output
) -> tuple[float | None, list[float] | None]:
    """Temperature of the model's probabilities, and of `one-vs-rest` thresholds of its classes.

    Both are None without labelled clips in validation.
    """
    if not task.spec.num_classes or not len(data.valid):
        return None, None
    ids, context = data.valid.ids, data.context
    outputs = predict_logits(
        model, data.store, ids, max_frames=task.train.max_frames, context=context
    )
    truth = data.valid.labels
    temperature = fit_temperature(log_probabilities(distributions(outputs, output)), truth)
    if output != "one-vs-rest":
        return temperature, None
    return temperature, fit_thresholds(sigmoid(outputs), truth)


def _validation(
    task: TrainingTask, data: TrainingData, progress: Progress
) -> dict[str, Any] | None:
    """UAR and macro F1 of the exported epoch, and `bars`: what a model that learnt nothing has.

    Of a model of dimensions alone, the CCC. None where validation cannot tell: it lacks labels, or
    has one class only.
    """
    counts = np.bincount(data.train.labels[data.train.labels >= 0], minlength=len(data.classes))
    majority = int(counts.argmax())
    reference = bars(data.valid.labels, majority)
    best = progress.history[progress.best_epoch - 1]
    if task.spec.num_classes == 0 and "valid_ccc" in best:
        # A constant has a CCC of 0, whatever it is.
        return {"ccc": best["valid_ccc"], "bars": {"ccc": 0.0}}
    if reference is None:
        return None
    scores = {name: best[f"valid_{name}"] for name in reference}
    return {**scores, "bars": reference, "majority": data.classes[majority]}


def discard_state(folder: Path) -> None:
    """Remove the checkpoints of a finished training; optimizer state is twice the model's size."""
    shutil.rmtree(state_folder(folder), ignore_errors=True)
