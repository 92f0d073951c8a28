"""Exports the model folder of a finished training, which all later stages read."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from multistill.models.build import build
from multistill.models.files import CONFIG, ModelInfo, save_model
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
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
    """Write model.safetensors, config.json and history.json from the best checkpoint.

    config.json is written last, so a folder that has it is complete.

    Returns:
        the entry `training` of config.json.
    """
    weights, progress = best_weights(state_dir)
    store = data.store
    model = build(task.spec, store.audio_dim, store.text_dim)
    model.load_state_dict(weights)
    summary = {
        "name": task.name,
        "seed": task.seed,
        "epochs": progress.epoch,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "metric": task.train.metric,
        "loss": task.train.loss,
        "label_source": task.train.label_source,
        "train_rows": len(data.train),
        "valid_rows": len(data.valid),
        "rows_without_features": data.without_features,
        "task": hashlib.sha256(canonical(task.identity()).encode()).hexdigest()[:16],
    }
    write_json(folder / HISTORY, {**summary, "epochs": progress.history})
    info = ModelInfo(
        role=task.role,
        output="shares" if task.train.loss == "mse" else "logits",
        max_frames=task.train.max_frames,
        encoders=store.encoders(),
        training=summary,
    )
    save_model(model, folder, info)
    return summary


def discard_state(folder: Path) -> None:
    """Remove the checkpoints of a finished training; optimizer state is twice the model's size."""
    shutil.rmtree(state_folder(folder), ignore_errors=True)
