"""What a rate is of: two jobs that encode or train alike share their measurements."""

from __future__ import annotations

from typing import Any

from multistill.config import JobConfig, ModelConfig, TrainSection
from multistill.workspace import fingerprint

_OF_SPEED = (
    "max_frames",
    "accumulation",
    "batch_frames",
    "precision",
    "compile",
    "augmentation",
    "average_epochs",
)
"""Fields of a training that change how long a row takes."""

START = {"of": "start"}
"""The start of a worker process: Python, torch and Ray imported."""


def encoding_key(job: JobConfig) -> dict[str, Any]:
    """Of the rate of encoding: encoders, their settings and the type of what is stored."""
    from multistill.features.identity import store_settings

    return {"of": "encoding", "settings": store_settings(job.features)}


def training_key(job: JobConfig, model: ModelConfig, train: TrainSection) -> str:
    """Of the rate of a training: network, batch, and the states that it reads.

    A student and its control have the same, since losses on a teacher's outputs cost little.
    """
    from multistill.features.identity import store_settings
    from multistill.models.presets import resolve
    from multistill.training.defaults import defaults_of

    tasks = job.tasks.weights()
    decided = {
        **job.features.side_by_side(),
        "num_classes": len(job.labels.classes) if "classes" in tasks else 0,
        "dimensions": job.tasks.dimensions,
    }
    settings = train.model_dump(mode="json")
    what = {
        "model": resolve(model.preset, {**model.overrides(), **decided}).to_dict(),
        "batch_size": train.batch_size or defaults_of(model.preset).batch_size,
        "train": {name: settings[name] for name in _OF_SPEED},
        "features": store_settings(job.features),
        "encoders": [job.features.speech.train.identity(), job.features.text.train.identity()],
        "tasks": dict(tasks),
    }
    return fingerprint("training-rate", 1, what, {})


def training_what(key: str) -> dict[str, Any]:
    """The rate of a training, for `Rates`."""
    return {"of": "training", "key": key}


def stage_what(stage: str) -> dict[str, Any]:
    """The rate of a stage beyond encoding and epochs, for `Rates`."""
    return {"of": "stage", "stage": stage}
