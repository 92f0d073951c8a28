"""Checks of students that train a slimmed copy of the speech encoder."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.encoders.slim import EncoderSizes
from multistill.pipeline.recipes.models import models_of, searched_spec

_KEYS = {f"model.encoder_{name}": name for name in ("layers", "heads", "feedforward")}


def check_slimmed(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Sizes that the speech encoder has not, and slimmed encoders that nothing could train."""
    for each in models_of(job):
        if (spec := each.spec) is None or not spec.slim.given:
            continue
        if each.section[0] != "students":
            yield (
                each.location,
                f"{each.title}: encoder_layers, encoder_heads and encoder_feedforward are of a "
                "student, which is slimmer than its teacher; remove the sizes",
            )
            continue
        yield from ((each.location, f"{each.title}: {told}") for told in _problems(job, spec.slim))
    if job.search.enabled:
        yield from _searched(job)


def _problems(job: JobConfig, slim: EncoderSizes) -> Iterator[str]:
    from multistill.encoders.preflight import slimmed_problems

    speech = job.features.speech
    if speech.additional:
        if not speech.train.enabled:  # else told of the encoder
            yield (
                "a slimmed encoder is trained, and with features.speech.additional none can be; "
                "remove the others, or the sizes `encoder_...` of the model"
            )
        return
    yield from slimmed_problems(speech, slim)


def _searched(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """The same of every size that the search may choose, one at a time."""
    space, spec = job.search.space, searched_spec(job)
    if spec is None:
        return  # told by `check_presets`
    for key, name in _KEYS.items():
        if (parameter := space.get(key)) is None:
            continue
        location: Location = ("search", "space", key)
        if not spec.reads_audio or not spec.train_encoder:
            yield (
                location,
                f"search.space: `{key}` is of a slimmed speech encoder, and the student "
                f"`{job.searched_student().name}` trains none; search other keys",
            )
            continue
        values = parameter.choices or (parameter.low, parameter.high)
        numbers = [int(value) for value in values if isinstance(value, int | float)]
        for told in _problems(job, EncoderSizes(**{name: max(numbers, default=None)})):
            yield location, f"search.space, {key}: {told}"
