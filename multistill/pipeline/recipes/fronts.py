"""Checks of convolutional fronts: they need bands of frequencies, not states of an encoder."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig, ModelConfig
from multistill.errors import MultistillError
from multistill.pipeline.recipes import Location

BANDS = "log-mel"
"""The speech encoder whose states are energies of neighbouring bands."""


def check_fronts(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Models whose convolutions over frequency would run over states without an order."""
    models: list[tuple[Location, str, ModelConfig]] = [
        (("teacher", "model"), "teacher", job.teacher.model)
    ]
    models += [
        (("students", index, "model"), f"student `{student.name}`", student.model)
        for index, student in enumerate(job.students)
    ]
    for location, name, model in models:
        if _convolves(model):
            yield from ((location, f"{name}: {sentence}") for sentence in _read(job, model))
    searched = job.search.space.get("model.front") if job.search.enabled else None
    if searched is not None and "convolutional" in (searched.choices or ()):
        for sentence in _read(job, job.searched_student().model):
            yield ("search", "space", "model.front"), f"search.space, model.front: {sentence}"


def _convolves(model: ModelConfig) -> bool:
    from multistill.models.presets import resolve

    try:
        spec = resolve(model.preset, model.overrides())
    except MultistillError:
        return False  # told on its own
    return spec.front == "convolutional" and spec.deep


def _read(job: JobConfig, model: ModelConfig) -> Iterator[str]:
    """A sentence if the model reads anything but log-mel energies."""
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
    yield (
        f"a convolutional front reads the bands of {BANDS} energies, and this one would read the "
        f"states of {', '.join(others)}; {advice}, or use `front: linear`"
    )
