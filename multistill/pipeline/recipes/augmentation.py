"""What augmentation cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import AugmentationConfig, JobConfig
from multistill.config.base import Location
from multistill.models.spec import Modality
from multistill.pipeline.recipes.models import models_of, searched_spec

_OF_AUDIO = ("time_masks", "feature_masks")
_OF_TEXT = ("word_dropout", "word_swap")


def check_augmentation(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Babble of test speakers, copies that nobody reads, and changes of states nobody reads."""
    modalities: list[Modality] = []
    for each in models_of(job):
        if (spec := each.spec) is None:
            continue
        modalities.append(spec.modality)
        config, location = each.train.augmentation, (*each.section, "train", "augmentation")
        yield from check_of_model(job, config, location, each.title, spec.modality)
    if job.search.enabled:
        spec = searched_spec(job)
        for setting, states in _unread(None if spec is None else spec.modality):
            if (key := f"train.augmentation.{setting}") in job.search.space:
                yield (
                    ("search", "space", key),
                    f"search.space: `{key}` changes {states} states, and the searched model reads "
                    "none; remove that key",
                )
    yield from _mixed_sequences(job)
    copies = job.features.augmentation
    if copies.reads_voices and job.protocol.crosses:
        yield (
            ("features", "augmentation", "noise_kinds"),
            f"features.augmentation: babble of other training clips is speech of people whom "
            f"another fold of `protocol: {job.protocol.kind}` tests; remove `babble` from "
            "`noise_kinds`, or give a `noise_folder`",
        )
    if copies.copies and set(modalities) == {"text"}:
        yield (
            ("features", "augmentation"),
            "features.augmentation: copies are of recordings, and all models of the job read text "
            "alone; remove `copies`",
        )


def check_of_model(
    job: JobConfig, config: AugmentationConfig, location: Location, title: str, modality: Modality
) -> Iterator[tuple[Location, str]]:
    """Changes of states that a model does not read, and of clips of classes that there are not."""
    for setting, states in _unread(modality):
        if getattr(config, setting):
            yield (
                (*location, setting),
                f"{title}: `train.augmentation.{setting}` changes {states} states, and "
                "the model reads none; remove it there",
            )
    for name in config.only:
        if name not in job.labels.classes:
            yield (
                (*location, "only"),
                f"{title}: train.augmentation.only: `{name}` is not a class of the job; use some "
                f"of {', '.join(job.labels.classes)}",
            )
    if config.only and not config.changes_states:
        yield (
            (*location, "only"),
            f"{title}: `train.augmentation.only` has no effect, since nothing changes the states "
            "of a clip alone; set `feature_masks: 1`, for example, or remove `only`",
        )


def _mixed_sequences(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Students that are to learn sequences and mix clips after these."""
    searched = job.search.space if job.search.enabled else {}
    if not job.distillation.sequence_weight and "distillation.sequence_weight" not in searched:
        return
    for index, student in enumerate(job.students):
        config = student.train.augmentation
        if config.mixup and config.mixes_pooled:
            yield (
                ("students", index, "train", "augmentation", "mixup_of"),
                f"student `{student.name}`: `mixup_of: pooled` mixes two clips after the sequences "
                "that `distillation.sequence_weight` compares; use `mixup_of: states`, or set "
                "`sequence_weight: 0`",
            )
    mixup, of = (searched.get(f"train.augmentation.{name}") for name in ("mixup", "mixup_of"))
    if mixup is None and of is None:
        return
    config = job.searched_student().train.augmentation
    if (mixup is not None or config.mixup) and "pooled" in (
        (of.choices if of else None) or [config.mixup_of]
    ):
        yield (
            ("search", "space"),
            "search.space: `mixup_of: pooled` mixes two clips after the sequences that "
            "`distillation.sequence_weight` compares; search `mixup` of the states, or remove "
            "`sequence_weight`",
        )


def _unread(modality: Modality | None) -> Iterator[tuple[str, str]]:
    """Settings of states that a model does not read, with the name of these states."""
    if modality == "text":
        yield from ((name, "speech") for name in _OF_AUDIO)
    elif modality == "audio":
        yield from ((name, "text") for name in _OF_TEXT)
