"""The classifier of a model, apart from the body that it reads."""

from __future__ import annotations

from torch import nn

CLASSIFIERS = ("classifier", "wide.linear")
"""Modules that map pooled states to outputs, in every network."""


def classifier_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The classifier's modules by their full name in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.removeprefix("head.") in CLASSIFIERS
    }


def is_of_classifier(parameter: str, model: nn.Module) -> bool:
    """Whether a parameter, by its full name, is the classifier's."""
    return any(parameter.startswith(f"{name}.") for name in classifier_modules(model))
