"""The running average of a model's weights, which is validated and exported in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from multistill.models.joint import Model, load_trained_state, trained_state

_PREFIX = "trained."


class WeightAverage:
    """Running average of the weights after each optimizer step (`torch.optim.swa_utils`).

    After step n, with w_n the trained weights:

        a_n = a_(n-1) + (w_n - a_(n-1)) / min(n, window)

    So it is the plain mean of all weights so far during the first `window` steps, and from then
    on an exponential moving average (Polyak and Juditsky 1992) with decay 1 - 1/window: a start
    at random weights is forgotten as fast as the later ones. The number of steps decides the
    update, so the average needs no state but itself. Buffers are those of the model.

    Args:
        model: is copied; its own weights stay those that are trained.
        window: in steps, at least 1.
    """

    def __init__(self, model: Model, window: float) -> None:
        self._window = max(1.0, window)
        # Without `device`, the counter stays on the CPU: reading it does not wait for a GPU.
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)

    @property
    def model(self) -> Model:
        """The model with the averaged weights."""
        return cast(Model, self._averaged.module)

    def update(self, model: Model) -> None:
        """Add the weights after an optimizer step; equal on all ranks, without communication."""
        self._averaged.update_parameters(model)

    def load(self, averaged: Mapping[str, Tensor], steps: int) -> None:
        """Continue from an average over `steps` steps."""
        load_trained_state(self.model, averaged)
        self._averaged.n_averaged.fill_(steps)

    @torch.no_grad()
    def _average(self, averaged: Sequence[Tensor], trained: Sequence[Tensor], _: object) -> None:
        steps = int(self._averaged.n_averaged) + 1
        # Weights that are never trained are shared with the model.
        own = [
            (a, t) for a, t in zip(averaged, trained, strict=True) if a.data_ptr() != t.data_ptr()
        ]
        torch._foreach_lerp_(
            [a for a, _ in own], [t for _, t in own], 1.0 / min(steps, self._window)
        )


def trained_tensors(model: Model) -> dict[str, Tensor]:
    """The trained weights, named for the file of the optimizer's state."""
    return {f"{_PREFIX}{name}": tensor for name, tensor in trained_state(model).items()}


def trained_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `trained_tensors`; other tensors are ignored."""
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX)
    }
