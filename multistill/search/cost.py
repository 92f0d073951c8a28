"""The second thing a search may care about: how large or how slow a student is."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

import torch

from multistill.features.batches import collate
from multistill.features.store import FeatureStore
from multistill.models.build import build, count_parameters
from multistill.models.spec import ModelSpec
from multistill.training.task import TrainingTask

_CLIPS = 5
_REPEATS = 6


def cost(kind: Literal["parameters", "latency"], task: TrainingTask) -> float:
    """Trainable parameters, or the head's median milliseconds for one clip on one CPU thread.

    Both depend on the model's settings only, so they are known before training. Encoders
    cost the same for every trial and are left out.
    """
    store = FeatureStore(Path(task.features))
    model = build(ModelSpec.from_dict(task.spec), store.audio_dim, store.text_dim).eval()
    if kind == "parameters":
        return float(count_parameters(model))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for identity in store.ids[:_CLIPS]:
            batch = collate(store, [identity], task.train_config.max_frames)
            for _ in range(_REPEATS):
                started = time.perf_counter()
                with torch.inference_mode():
                    model(batch.audio, batch.audio_mask, batch.text, batch.text_mask)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times) * 1000.0
