"""The classifier of a model, apart from the body that it reads."""

from __future__ import annotations

from torch import nn

from multistill.models.joint import JointModel, Model


def classifier_modules(model: Model) -> dict[str, nn.Module]:
    """The classifier's modules by their full name in the model."""
    network, prefix = (model.head, "head.") if isinstance(model, JointModel) else (model, "")
    modules = dict(network.named_modules())
    return {f"{prefix}{name}": modules[name] for name in network.classifiers if name in modules}


def is_of_classifier(parameter: str, model: Model) -> bool:
    """Whether a parameter, by its full name, is the classifier's."""
    return any(parameter.startswith(f"{name}.") for name in classifier_modules(model))
