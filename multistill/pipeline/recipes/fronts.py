"""Checks of convolutions over frequency: they need its bands, not states of an encoder."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig, ModelConfig
from multistill.config.base import Location
from multistill.pipeline.recipes.models import models_of, searched_spec

BANDS = "log-mel"
"""The speech encoder whose states are energies of neighbouring bands."""


def check_fronts(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Models whose convolutions over frequency would run over states without an order."""
    for each in models_of(job):
        if (spec := each.spec) is not None and spec.reads_bands:
            for sentence in _read(job, each.model, spec.network):
                yield each.location, f"{each.title}: {sentence}"
    if job.search.enabled:
        yield from _searched(job)


def _searched(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Trials with a convolutional front, of the student or searched, on what they may read."""
    space, model = job.search.space, job.searched_student().model
    front, encoder = space.get("model.front"), space.get("model.speech_encoder")
    if front is None and encoder is None:
        return
    if front is None:
        spec = searched_spec(job)
        convolutional = spec is not None and spec.reads_bands
    else:
        convolutional = "convolutional" in (front.choices or ())
    if not convolutional:
        return
    key = "model.front" if encoder is None else "model.speech_encoder"
    choices = [model.speech_encoder] if encoder is None else (encoder.choices or ())
    for choice in choices:
        changed = model.model_copy(update={"speech_encoder": choice})
        for sentence in _read(job, changed, "head"):
            yield ("search", "space", key), f"search.space, {key}: {sentence}"


def _read(job: JobConfig, model: ModelConfig, network: str) -> Iterator[str]:
    """A sentence if the model reads anything but log-mel energies.

    Args:
        network: of a head it is the front that reads them.
    """
    parts = job.features.speech.parts
    read = [part for part in parts if model.speech_encoder in (None, part.title)]
    others = [part.title for part in read if part.model != BANDS]
    if not others:
        return
    energies = [part.title for part in parts if part.model == BANDS]
    if energies:
        advice = f"set `speech_encoder: {energies[0]}` in its model"
    else:
        advice = (
            f"add `additional: [{BANDS}]` to features.speech and set `speech_encoder: {BANDS}` in "
            "its model"
        )
    reader = "a convolutional front" if network == "head" else f"the network {network}"
    sentence = (
        f"{reader} reads the bands of {BANDS} energies, and this one would read the states of "
        f"{', '.join(others)}; {advice}"
    )
    yield f"{sentence}, or use `front: linear`" if network == "head" else sentence
