"""Retraining without training: a model store whose models have given validation scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.search_case import TASK
from multistill.config import SearchConfig
from multistill.models.files import FORMAT
from multistill.search.finalists import retrain
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training.task import TrainingTask

VALIDATION = {
    "uar": 0.6,
    "macro_f1": 0.6,
    "bars": {"uar": 0.2, "macro_f1": 0.1},
    "majority": "neutral",
}
TRAINING = {
    "learning_rate": 1e-3,
    "batch_size": 16,
    "budget": 9,
    "epochs": 9,
    "steps": 90,
    "loss": "soft-cross-entropy",
    "label_source": "shares",
    "train_loss": [1.9, 1.2],
    "validation": VALIDATION,
}
"""What `export` writes about a training that beats the majority."""

HOT, COLD = {"distillation.temperature": 6.0}, {"distillation.temperature": 2.0}


class StoreWithScores:
    """Has the interface of `ModelStore` that `retrain` uses.

    Attributes:
        calls: names of the tasks of every call of `train`.
        tasks: every task that was passed to `train`, by name.
    """

    def __init__(self, root: Path, scores: Mapping[str, float]) -> None:
        self.root, self.scores = root, scores
        self.calls: list[list[str]] = []
        self.tasks: dict[str, TrainingTask] = {}

    def folder(self, model: Mapping[str, str]) -> Path:
        return self.root / model["fingerprint"]

    def train(
        self, planned: Sequence[tuple[TrainingTask, Any]], out: Path, logger: RunLogger
    ) -> dict[str, Any]:
        tasks = [task for task, _ in planned]
        self.calls.append([task.name for task in tasks])
        self.tasks |= {task.name: task for task in tasks}
        for task in tasks:
            folder = self.root / task.name
            folder.mkdir()
            score = self.scores.get(task.name, 0.3)
            epochs = [
                {"epoch": 1.0, "valid_macro_f1": score, "valid_loss": 2.0 - score},
                {"epoch": 2.0, "valid_macro_f1": score - 0.1, "valid_loss": 0.1},
            ]
            history = {"epochs": epochs, "best_epoch": 1}
            (folder / "history.json").write_text(json.dumps(history))
            (folder / "model.safetensors").write_text(task.name)
            config = {
                **{"format": FORMAT, "sha256": "", "spec": {"modality": "audio"}},
                **{"output": "logits", "audio_dim": 8, "text_dim": 8, "max_frames": None},
                **{"encoders": {}, "dtype": "float16"},
                **{"role": "student", "labels": ["happy", "sad"], "temperature": None},
                "training": TRAINING,
            }
            (folder / "config.json").write_text(json.dumps(config))
        return {"models": {task.name: {"fingerprint": task.name} for task in tasks}}


def retrained(store: StoreWithScores, top: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
    """Retrain the settings `top` of `TASK`."""
    search = SearchConfig(retrain=len(top), **config)
    return retrain(TASK, top, search, store, {}, store.root, NullLogger())  # type: ignore[arg-type]
