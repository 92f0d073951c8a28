"""Records of the driver about its trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK

from multistill.config import SpeechEncoderConfig
from multistill.encoders.source import EncoderSource
from multistill.training.events import EventListener


def test_encoder_training_and_augmentation_are_recorded_where_they_are_set(tmp_path: Path) -> None:
    config = SpeechEncoderConfig(model="wav2vec2", train={"kind": "last-4", "top": 2})
    augmented = TASK.with_train(augmentation={"mixup": 0.2, "mixup_of": "pooled"})
    task = replace(augmented, encoders={"speech": EncoderSource("speech", config, None)})
    logger = RecordingLogger()
    started = {
        "kind": "started",
        "task": task.name,
        "worker": "w",
        "problems": [],
        "epoch": 0,
        "steps": 0,
    }
    EventListener([task], tmp_path, logger).handle({**started, "train_rows": 2, "valid_rows": 1})
    recorded = logger.children[task.name].logged_params
    assert recorded["features.speech.train.layers"] == 4
    assert recorded["features.speech.train.top"] == 2
    assert recorded["train.augmentation.mixup"] == 0.2
    assert not any("features.text" in key or "word_swap" in key for key in recorded)
