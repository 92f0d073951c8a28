"""What of a model a task trains, and with which weights it starts."""

from __future__ import annotations

import copy

from multistill.models.joint import Model
from multistill.models.parts import classifier_modules, is_of_classifier
from multistill.training.initial import load_initial
from multistill.training.task import TrainingTask


def load_start(model: Model, task: TrainingTask) -> None:
    """Load the initial weights of a task into a drawn model, and freeze what it does not train.

    Raises:
        MultistillError: as of `load_initial`.
    """
    drawn = {
        name: copy.deepcopy(module.state_dict())
        for name, module in classifier_modules(model).items()
    }
    load_initial(model, task.initial)
    if task.new_classifier:
        for name, state in drawn.items():
            model.get_submodule(name).load_state_dict(state)
    if task.trains == "classifier":
        model.requires_grad_(False)
        for module in classifier_modules(model).values():
            module.requires_grad_(True)


def to_training_mode(model: Model, task: TrainingTask) -> None:
    """Training mode of what is trained; a part that stays computes as in evaluation."""
    model.train(task.trains == "all")
    if task.trains == "classifier":
        for module in classifier_modules(model).values():
            module.train()


def trained_parameters(model: Model, task: TrainingTask) -> int:
    """Number of parameters that the task trains."""
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    trained = [n for n in names if task.trains == "all" or is_of_classifier(n, model)]
    return sum(model.get_parameter(name).numel() for name in trained)
