"""What models that train an encoder cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig, TrainSection
from multistill.pipeline.recipes import Location
from multistill.pipeline.recipes.models import models_of


def check_trained_encoders(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Settings that need states which stay as they are, in models that read a trained encoder."""
    trained = job.features.trained
    for each in models_of(job) if trained else []:
        if (spec := each.spec) is None:
            continue
        reads = {"speech": spec.reads_audio, "text": spec.reads_text}
        own = [section for section in trained if reads[section]]
        if not own:
            continue
        if spec.context_turns:
            yield (
                each.location,
                f"{each.title}: context_turns reads kept states of previous turns, and "
                f"features.{own[0]}.train changes the encoder at every step; set context_turns to "
                "0, or `train: none`",
            )
        if changed := _changed_states(each.train):
            yield (
                (*each.section, "train", "augmentation", changed),
                f"{each.title}: `train.augmentation.{changed}` changes states of the store, and "
                f"features.{own[0]}.train reads the encoder's input there; remove it, and use "
                "`time_mask` and `feature_mask` of features.speech.train, or `mixup_of: pooled`",
            )


def _changed_states(train: TrainSection) -> str | None:
    """The first setting of augmentation that changes what the store keeps."""
    config = train.augmentation
    if config.mixup and not config.mixes_pooled:
        return "mixup"
    names = ("noise", "time_masks", "feature_masks", "word_dropout", "word_swap")
    return next((name for name in names if getattr(config, name)), None)
