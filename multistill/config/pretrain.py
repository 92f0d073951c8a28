"""Job-file section of the trainings before the teacher's (recipe `pretrain`)."""

from __future__ import annotations

from pydantic import Field

from multistill.config.base import Section
from multistill.config.models import TrainSection


class PretrainConfig(Section):
    """How the branches of a `va-fusion` are trained before it, each for one dimension.

    Their models are those of the teacher: `teacher.model` has `va_audio_layers`,
    `va_audio_dimension` and so on.
    """

    audio: TrainSection = Field(
        default_factory=TrainSection, description="of the speech branch, for arousal by default"
    )
    text: TrainSection = Field(
        default_factory=TrainSection, description="of the text branch, for valence by default"
    )
