"""Checks of what models read of the feature store: which speech encoder, a layer, their sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from multistill.config import JobConfig, ModelConfig
from multistill.config.base import Location
from multistill.errors import UsageError
from multistill.models.presets import resolve
from multistill.pipeline.recipes.models import models_of

Stored = Mapping[str, Sequence[int]]
"""Per encoder of a section, by title, the layers that the store holds side by side."""


def check_stored_states(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Encoders and layers that a model is to read and the feature store does not hold apart."""
    speech: Stored = {part.title: part.side_by_side for part in job.features.speech.parts}
    text: Stored = {"text": job.features.side_by_side().get("text_layers", [])}
    for each in models_of(job):
        model = each.model
        encoders = [] if model.speech_encoder is None else [model.speech_encoder]
        layers = [] if model.speech_layer is None else [model.speech_layer]
        found = [*_encoders(encoders, speech), *_speech_layers(layers, encoders, speech)]
        if model.text_layer is not None:
            found += _layers("text_layer", [model.text_layer], text, "features.text")
        yield from ((each.location, sentence) for sentence in found or _mix(job, model, {}))
    if job.search.enabled:
        yield from _searched(job, speech, text)


def _searched(job: JobConfig, speech: Stored, text: Stored) -> Iterator[tuple[Location, str]]:
    space = job.search.space
    for name in ("speech_layer", "text_layer"):
        searched = space.get(f"model.{name}")
        if searched and searched.choices is None:
            yield ("search", "space"), f"search.space: `model.{name}` needs `choices`"

    def choices(name: str) -> list[object]:
        searched = space.get(f"model.{name}")
        return list((searched.choices if searched else None) or [])

    own = job.searched_student().model.speech_encoder
    encoders = choices("speech_encoder") or ([] if own is None else [own])
    for key, found in (
        ("speech_encoder", _encoders(choices("speech_encoder"), speech)),
        ("speech_layer", _speech_layers(choices("speech_layer"), encoders, speech)),
        ("text_layer", _layers("text_layer", choices("text_layer"), text, "features.text")),
    ):
        yield from ((("search", "space", f"model.{key}"), sentence) for sentence in found)
    for mix in choices("layer_mix"):
        model = job.searched_student().model
        for sentence in _mix(job, model, {"layer_mix": mix}):
            yield ("search", "space", "model.layer_mix"), sentence


def _mix(job: JobConfig, model: ModelConfig, searched: Mapping[str, object]) -> Iterator[str]:
    """A sum of layers where the store holds one state per position of what the model reads."""
    parts = [
        {"title": part.title, "width": 0, "layers": part.side_by_side}
        for part in job.features.speech.parts
        if job.features.speech.additional
    ]
    stored = {**job.features.side_by_side(), "speech_parts": parts}
    try:
        spec = resolve(model.preset, {**model.overrides(), **searched, **stored})
    except UsageError:
        return  # told by the recipe's own check of its models and of the space
    if spec.layer_mix != "none" and not spec.mixed:
        yield (
            f"layer_mix: {spec.layer_mix} has no layers to sum, the store holds one state of what "
            "this model reads; set `layers: [...]` and `combine: concat` of its encoder, or "
            "`layer_mix: none`"
        )


def _encoders(titles: Sequence[object], speech: Stored) -> Iterator[str]:
    for title in titles:
        if len(speech) == 1:
            yield (
                f"speech_encoder: `{title}` cannot be chosen, features.speech is one encoder; "
                "list others in features.speech.additional, or remove `speech_encoder`"
            )
        elif title not in speech:
            yield (
                f"speech_encoder: features.speech has no encoder called `{title}`; use one of "
                f"{', '.join(speech)}"
            )


def _speech_layers(
    layers: Sequence[object], encoders: Sequence[object], speech: Stored
) -> Iterator[str]:
    """Layers that none of the chosen speech encoders holds apart."""
    if layers and len(speech) > 1 and not encoders:
        yield (
            f"speech_layer: features.speech has several encoders ({', '.join(speech)}); say which "
            "one the layer is of with `speech_encoder`"
        )
        return
    read = {title: stored for title, stored in speech.items() if title in encoders} or speech
    first = next(iter(speech)) in read
    yield from _layers(
        "speech_layer", layers, read, "features.speech" if first else "features.speech.additional"
    )


def _layers(name: str, layers: Sequence[object], read: Stored, section: str) -> Iterator[str]:
    stored = [layer for each in read.values() for layer in each]
    for layer in layers:
        if layer not in stored:
            held = f"layers {', '.join(map(str, stored))}" if stored else "one state"
            yield (
                f"{name}: layer {layer} cannot be read, the store holds {held}; set {section}: "
                f"{{layers: [..., {layer}], combine: concat}}"
            )
