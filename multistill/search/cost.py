"""The second objective of a search: the size or the latency of a student."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from multistill.errors import UsageError
from multistill.features.cache import open_store
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.models.build import count_parameters
from multistill.models.joint import build_model
from multistill.models.spec import Modality, ModelSpec
from multistill.training.task import TrainingTask
from multistill.workspace import read_json, write_json

ENCODERS = "encoders.json"
_CLIPS = 10
_REPEATS = 3


def cost(kind: Literal["parameters", "latency"], task: TrainingTask, folder: Path) -> float:
    """Trainable parameters, or the median milliseconds from a recording to its logits.

    Both depend on the model's settings only, so they are known before training. Decoding and
    encoding take every trial of a modality and layer the same time, which `time_encoders` measured
    once.

    Args:
        folder: of the search; for `latency` it holds what `time_encoders` measured.
    """
    store = open_store(task.features)
    model = build_model(task.spec, store.audio_dim, store.text_dim, task.load_encoders()).eval()
    if kind == "parameters":
        return float(count_parameters(model))
    encoders = read_json(folder / ENCODERS)["milliseconds"]
    return float(encoders[_encoders_of(model.spec)] + _time_head(task, store, model))


def time_encoders(task: TrainingTask, folder: Path) -> dict[str, Any]:
    """Time decoding and encoding of some clips, one at a time; write the medians to `folder`.

    Runs where trials run, with the resources of a trial: on a GPU where it has one.

    Returns:
        `milliseconds` by modality and layers, `clips`, `device`.

    Raises:
        UsageError: the recordings or the encoders are not available there.
    """
    from multistill.inference.latency import EncoderLatency

    manifest, store, device = (
        Path(task.manifest),
        open_store(task.features),
        default_device(),
    )
    latency = EncoderLatency(
        manifest if manifest.is_dir() else manifest.parent, store.info, store.ids, _CLIPS, device
    )
    if latency.component_ms is None:
        raise UsageError(
            "search.second: latency includes decoding and encoding, which cannot be timed here "
            f"({latency.reason}); use `second: parameters`"
        )
    no_head = [0.0] * len(latency.ids)
    milliseconds = {}
    for spec in _readers(task.spec):
        per_clip = latency.end_to_end_ms(
            spec.modality, no_head, spec.layers_read, spec.encoder_read
        )
        milliseconds[_encoders_of(spec)] = statistics.median(per_clip or no_head)
    measured: dict[str, Any] = {
        "milliseconds": milliseconds,
        "clips": len(latency.ids),
        "device": str(device),
    }
    write_json(folder / ENCODERS, measured)
    return measured


def _readers(spec: ModelSpec) -> list[ModelSpec]:
    """A head for every modality and every choice of stored states that trials may read."""
    return [
        spec.reading(
            modality=modality,
            speech_encoder=speech_encoder,
            speech_layer=speech_layer,
            text_layer=text_layer,
        )
        for modality in get_args(Modality)
        for speech_encoder, speech_layer in (
            _speech_choices(spec) if modality != "text" else [(None, None)]
        )
        for text_layer in ((None, *spec.text_layers) if modality != "audio" else (None,))
    ]


def _speech_choices(spec: ModelSpec) -> list[tuple[str | None, int | None]]:
    """Speech encoder and layer that a head may read alone; None: all."""
    if not spec.speech_parts:
        return [(None, layer) for layer in (None, *spec.speech_layers)]
    of_parts = [(p.title, layer) for p in spec.speech_parts for layer in (None, *p.layers)]
    return [(None, None), *of_parts]


def _encoders_of(spec: ModelSpec) -> str:
    """What a head needs from the encoders, as a key: `multimodal, speech layer 9`."""
    encoder = [] if spec.encoder_read is None else [f"speech {spec.encoder_read}"]
    layers = [f"{name} layer {layer}" for name, layer in spec.layers_read.items()]
    return ", ".join([spec.modality, *encoder, *layers])


def _time_head(task: TrainingTask, store: FeatureStore, model: torch.nn.Module) -> float:
    """Median milliseconds of the head alone, with the encoder states in memory."""
    from multistill.inference.latency import time_each

    device = default_device()
    model = model.to(device)
    frames = task.train.max_frames
    step = max(1, len(store.ids) // _CLIPS)
    batches = [collate(store, [name], frames).to(device) for name in store.ids[::step][:_CLIPS]]
    milliseconds, _ = time_each(
        lambda b: model(b.audio, b.audio_mask, b.text, b.text_mask), batches * _REPEATS, device
    )
    return statistics.median(milliseconds)
