"""What models that train an encoder cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from multistill.config import JobConfig, SearchParameter, TrainSection
from multistill.config.base import Location
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.models.spec import ModelSpec
from multistill.pipeline.recipes.models import models_of, searched_spec
from multistill.pipeline.recipes.slimmed import check_slimmed
from multistill.search.space import ENCODERS, NOT_SEARCHED, known_keys

_CHANGES = ("noise", "time_masks", "feature_masks", "word_dropout", "word_swap")


def check_trained_encoders(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Settings that need states which stay as they are, in models that read a trained encoder."""
    trained = job.features.trained
    for each in models_of(job) if trained else []:
        if (spec := each.spec) is None:
            continue
        own = _trained_of(job, spec)
        if not own:
            continue
        if spec.context_turns:
            yield (
                each.location,
                f"{each.title}: context_turns reads kept states of previous turns, and "
                f"features.{own[0]}.train changes the encoder at every step; set context_turns to "
                "0, or `train: none`",
            )
        location = (*each.section, "train", "augmentation")
        yield from check_states(each.train, location, f"{each.title}: `train.", own[0])
    if job.search.enabled:
        yield from _searched_trainings(job)
    if trained and job.search.enabled:
        yield from _searched(job)
    yield from check_slimmed(job)


def check_states(
    train: TrainSection, location: Location, setting: str, encoder: str
) -> Iterator[tuple[Location, str]]:
    """Changes of states where the store keeps the input of an encoder that is trained.

    Args:
        location: of the section `augmentation`.
        setting: how the sentence and the name of that section start.
    """
    if changed := _changed_states(train):
        yield (
            (*location, changed),
            f"{setting}augmentation.{changed}` changes states of the store, and "
            f"features.{encoder}.train reads the encoder's input there; remove it, and use "
            "`time_mask` and `feature_mask` of features.speech.train, or `mixup_of: pooled`",
        )


def _searched(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """The same of what the search may set."""
    space, student, spec = job.search.space, job.searched_student(), searched_spec(job)
    own = [] if spec is None else _trained_of(job, spec)
    if not own:
        return
    keys = ["model.context_turns"]
    keys += [f"train.augmentation.{name}" for name in (*_CHANGES, "mixup")]
    pooled = space.get("train.augmentation.mixup_of")
    kinds = (pooled.choices if pooled else None) or [student.train.augmentation.mixup_of]
    for key in keys:
        parameter = space.get(key)
        if parameter is None or not _above_zero(parameter):
            continue
        if key.endswith(".mixup") and kinds == ["pooled"]:
            continue
        remedy = "remove that key"
        if key.endswith(".mixup"):
            remedy = "set `mixup_of: pooled` of the student, or remove that key"
        yield (
            ("search", "space", key),
            f"search.space: `{key}` needs states of the store, and features.{own[0]}.train changes "
            f"them at every step; {remedy}",
        )


def _searched_trainings(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Settings of encoder training that the searched student's encoder has not."""
    student, spec = job.searched_student(), searched_spec(job)
    if spec is None:
        return  # told by the recipe's own check of its models
    for key, parameter in job.search.space.items():
        section, _, name = key.rpartition(".")
        encoder = ENCODERS.get(section)
        if encoder is None or key in NOT_SEARCHED or key not in known_keys():
            continue  # the rest is told by `check_space`
        location: Location = ("search", "space", key)
        if encoder not in _trained_of(job, spec) or not spec.train_encoder:
            yield (
                location,
                f"search.space: `{key}` is a setting of an encoder that is trained, and the "
                f"student `{student.name}` trains no {encoder} encoder; set `{section}`, or remove "
                "that key",
            )
            continue
        train = getattr(job.features, encoder).train.model_dump()
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                EncoderTrainingConfig.model_validate({**train, name: value})
            except ValidationError as error:
                reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                yield location, f"search.space: `{key}`: {value!r} is not possible: {reason}"
                break


def _trained_of(job: JobConfig, spec: ModelSpec) -> list[str]:
    """The trained encoders that a model reads."""
    reads = {"speech": spec.reads_audio, "text": spec.reads_text}
    return [section for section in job.features.trained if reads[section]]


def _above_zero(parameter: SearchParameter) -> bool:
    return any(parameter.choices) if parameter.choices is not None else bool(parameter.high)


def _changed_states(train: TrainSection) -> str | None:
    """The first setting of augmentation that changes what the store keeps."""
    config = train.augmentation
    if config.mixup and not config.mixes_pooled:
        return "mixup"
    return next((name for name in _CHANGES if getattr(config, name)), None)
