"""Which part of a model a task trains: all of it, or the classifier on a body that stays."""

from __future__ import annotations

from torch import nn

from multistill.models.joint import Model
from multistill.training.task import TrainingTask

CLASSIFIERS = ("classifier", "wide.linear")
"""Modules that map pooled states to outputs, in heads and networks."""


def classifier_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The classifier's modules by their full name in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(name == each or name.endswith(f".{each}") for each in CLASSIFIERS)
    }


def is_of_classifier(parameter: str, model: nn.Module) -> bool:
    """Whether a parameter, by its full name, is the classifier's."""
    return any(parameter.startswith(f"{name}.") for name in classifier_modules(model))


def freeze(model: Model, task: TrainingTask) -> None:
    """Take the gradient from what the task does not train."""
    if task.trains == "all":
        return
    model.requires_grad_(False)
    for module in classifier_modules(model).values():
        module.requires_grad_(True)


def to_training_mode(model: Model, task: TrainingTask) -> None:
    """Training mode of what is trained; a part that stays computes as in evaluation."""
    model.train(task.trains == "all")
    if task.trains == "classifier":
        for module in classifier_modules(model).values():
            module.train()
