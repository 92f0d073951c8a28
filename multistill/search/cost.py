"""The second thing a search may care about: how large or how slow a student is."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal

import torch

from multistill.errors import UsageError
from multistill.features.cache import open_store
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.models.build import build, count_parameters
from multistill.training.task import TrainingTask
from multistill.workspace import read_json, write_json

ENCODERS = "encoders.json"
_CLIPS = 10
_REPEATS = 3


def cost(kind: Literal["parameters", "latency"], task: TrainingTask, folder: Path) -> float:
    """Trainable parameters, or the median milliseconds from a recording to its logits.

    Both depend on the model's settings only, so they are known before training. The way to
    the encoders' states is the same for every trial: it was timed once, by `time_encoders`.

    Args:
        folder: of the search; for `latency` it holds what `time_encoders` found.
    """
    store = open_store(Path(task.features))
    model = build(task.spec, store.audio_dim, store.text_dim).eval()
    if kind == "parameters":
        return float(count_parameters(model))
    encoders = read_json(folder / ENCODERS)["milliseconds"]
    return float(encoders[model.spec.modality] + _head(task, store, model))


def time_encoders(task: TrainingTask, folder: Path) -> dict[str, Any]:
    """Decode and encode some clips one at a time; write the medians into `folder`.

    Runs where trials run, with what a trial may take: a GPU where it has one.

    Returns:
        `milliseconds` by modality, `clips`, `device`.
    Raises:
        UsageError: the recordings or the encoders are not at hand there.
    """
    from multistill.inference.latency import EncoderLatency

    manifest, store, device = (
        Path(task.manifest),
        open_store(Path(task.features)),
        default_device(),
    )
    encoder_latency = EncoderLatency(
        manifest if manifest.is_dir() else manifest.parent, store.info, store.ids, _CLIPS, device
    )
    whole = {
        modality: encoder_latency.end_to_end_ms(modality, [0.0] * len(encoder_latency.ids))
        for modality in ("audio", "text", "multimodal")
    }
    found: dict[str, Any] = {
        "milliseconds": {k: statistics.median(v) for k, v in whole.items() if v is not None},
        "clips": len(encoder_latency.ids),
        "device": str(device),
    }
    if encoder_latency.component_ms is None:
        raise UsageError(
            "search.second: latency is from the recording on, which cannot be timed here "
            f"({encoder_latency.reason}); use `second: parameters`"
        )
    write_json(folder / ENCODERS, found)
    return found


def _head(task: TrainingTask, store: FeatureStore, model: torch.nn.Module) -> float:
    """Median milliseconds of the head alone, states already in memory."""
    from multistill.inference.latency import time_each

    device = default_device()
    model = model.to(device)
    frames = task.train.max_frames
    step = max(1, len(store.ids) // _CLIPS)
    batches = [collate(store, [name], frames).to(device) for name in store.ids[::step][:_CLIPS]]
    times, _ = time_each(
        lambda b: model(b.audio, b.audio_mask, b.text, b.text_mask), batches * _REPEATS, device
    )
    return statistics.median(times)
