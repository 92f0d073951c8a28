"""Learning rates and starting epochs of the trained layers of encoders."""

from __future__ import annotations

from dataclasses import dataclass

from multistill.models.joint import JointModel, Model
from multistill.training.task import TrainingTask


@dataclass(frozen=True)
class LayerSchedule:
    """When and how fast the parameters of an encoder train; empty for a head.

    Attributes:
        rates: learning rate over that of the head, by the parameter's name in the model.
        starts: epochs before the parameter starts to train, where there are any.
    """

    rates: dict[str, float]
    starts: dict[str, int]


def layer_schedule(model: Model, task: TrainingTask) -> LayerSchedule:
    """Layer-wise decay and gradual unfreezing (Howard and Ruder 2018, section 3.3).

    Counting from the top layer, layer d has the encoder's learning rate times `layer_decay`^d. It
    starts to train after (d + 1) * `unfreeze_epochs` epochs, so the head is the first to train.
    """
    rates: dict[str, float] = {}
    starts: dict[str, int] = {}
    frozen = not task.spec.train_encoder or task.trains != "all"
    if not isinstance(model, JointModel) or frozen:
        return LayerSchedule(rates, starts)
    for section, encoder in model.trainable_encoders():
        train = task.encoders[section].config.train
        assert train.learning_rate and train.layer_decay and train.unfreeze_epochs is not None
        for depth, names in enumerate(encoder.layer_groups()):
            rate = train.learning_rate * train.layer_decay**depth / task.train.learning_rate
            for name in names:
                rates[f"encoders.{section}.{name}"] = rate
                if train.unfreeze_epochs:
                    starts[f"encoders.{section}.{name}"] = (depth + 1) * train.unfreeze_epochs
    return LayerSchedule(rates, starts)
