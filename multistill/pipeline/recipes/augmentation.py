"""What augmentation cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import AugmentationConfig, JobConfig
from multistill.errors import MultistillError
from multistill.models.presets import resolve
from multistill.models.spec import Modality
from multistill.pipeline.recipes import Location

_OF_AUDIO = ("time_masks", "feature_masks")
_OF_TEXT = ("word_dropout", "word_swap")


def check_augmentation(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Babble of test speakers, copies that nobody reads, and changes of states nobody reads."""
    sections = [(("teacher",), "teacher", job.teacher.model, job.teacher.train)]
    sections += [
        (("students", index), f"student `{each.name}`", each.model, each.train)  # type: ignore[misc]
        for index, each in enumerate(job.students)
    ]
    modalities: list[Modality] = []
    for location, name, model, train in sections:
        try:
            modality = resolve(model.preset, model.overrides()).modality
        except MultistillError:  # told where presets are checked
            continue
        modalities.append(modality)
        for setting, other in _unread(train.augmentation, modality):
            yield (
                (*location, "train", "augmentation", setting),
                f"{name}: `train.augmentation.{setting}` changes {other} states, and the model "
                f"reads none; remove it there",
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


def _unread(config: AugmentationConfig, modality: Modality) -> Iterator[tuple[str, str]]:
    """Settings of states that a model does not read, with the name of these states."""
    for settings, missing, other in ((_OF_AUDIO, "text", "speech"), (_OF_TEXT, "audio", "text")):
        if modality == missing:
            yield from ((name, other) for name in settings if getattr(config, name))
