"""Epochs, batch size and learning rate that a job file leaves out.

A head needs a number of optimiser steps, not of epochs: 30 epochs are 150 steps on a corpus of
300 clips in batches of 64, and 11,000 on one of 24,000. So the epochs follow from the number of
training clips, within bounds. Rate and batch follow from the preset: the published heads
(`paper-*`, `text-*`) keep the published ones, the small heads take a rate twenty times as high.
The light students start without an encoder's knowledge: they take twice that, and more steps.
docs/training.md has the measurements. Networks of valence and arousal (`va-*`) are as wide as the
published heads and start from nothing: `paper-va-*` keep their published rate (docs/systems.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from multistill.config import TrainConfig, TrainSection


@dataclass(frozen=True)
class Defaults:
    """What a family of presets is trained with.

    Attributes:
        steps: optimiser steps that a training has at least, unless `max_epochs` ends it.
    """

    learning_rate: float
    batch_size: int
    steps: int
    min_epochs: int
    max_epochs: int


SMALL = Defaults(learning_rate=1e-3, batch_size=16, steps=1000, min_epochs=10, max_epochs=100)
LIGHT = Defaults(learning_rate=2e-3, batch_size=16, steps=1000, min_epochs=10, max_epochs=100)
VALENCE_AROUSAL = Defaults(
    learning_rate=1e-4, batch_size=16, steps=1000, min_epochs=10, max_epochs=60
)
PAPER_VALENCE_AROUSAL = Defaults(
    learning_rate=2e-5, batch_size=16, steps=2000, min_epochs=10, max_epochs=30
)
PUBLISHED = Defaults(learning_rate=5e-5, batch_size=64, steps=2000, min_epochs=10, max_epochs=100)

_FAMILIES = {
    "small-": SMALL,
    "light-": LIGHT,
    "va-": VALENCE_AROUSAL,
    "paper-va-": PAPER_VALENCE_AROUSAL,
}
"""Of presets by the start of their names; `PUBLISHED` are those of all others."""


def defaults_of(preset: str) -> Defaults:
    """The defaults of a preset's family."""
    return next((own for start, own in _FAMILIES.items() if preset.startswith(start)), PUBLISHED)


def resolve_training(
    section: TrainSection,
    preset: str,
    clips: int | None,
    metric: Literal["macro_f1", "ccc"] = "macro_f1",
) -> TrainConfig | None:
    """The section with every number decided; what it sets itself is kept.

    Args:
        clips: number of training clips; None: not known yet.
        metric: that epochs are chosen by, unless the section names one.

    Returns:
        None if the number of clips decides the epochs and is not known.

    Examples:
        >>> train = resolve_training(TrainSection(), "small-student", clips=288)
        >>> train.learning_rate, train.batch_size, train.epochs
        (0.001, 16, 56)
    """
    defaults = defaults_of(preset)
    batch_size = section.batch_size or defaults.batch_size
    epochs = section.epochs
    if epochs is None:
        if clips is None:
            return None
        wanted = math.ceil(defaults.steps / math.ceil(max(1, clips) / batch_size))
        epochs = min(max(wanted, defaults.min_epochs), defaults.max_epochs)
    values = section.model_dump() | {
        "batch_size": batch_size,
        "epochs": epochs,
        "metric": section.metric or metric,
        "learning_rate": section.learning_rate or defaults.learning_rate,
    }
    return TrainConfig.model_validate(values)
