"""Select hidden states of a transformer and leave out the layers above and below them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multistill.errors import UsageError


class LayerSelector:
    """Records selected hidden states with forward hooks; removes the layers that are not needed.

    Indices are those of `output_hidden_states`: 0 is the input of layer 1, k the output of layer
    k, and the last (or -1) the output of the model, after its final layer norm if it has one.

    Args:
        attribute: name of the layer list in `model.encoder`; the list is shortened in place.
        selected: indices of hidden states.
        combine: how several hidden states become one.
        key: job-file key, for messages.
        first: hidden state that the model is given as input; the layers below it are removed.

    Attributes:
        layers: those that are left.
        reads_output: whether the output of the model is one of the selected states.

    Raises:
        UsageError: the model has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        attribute: str,
        selected: Sequence[int],
        combine: Literal["mean", "concat"],
        key: str,
        first: int = 0,
    ) -> None:
        layers: nn.ModuleList = getattr(model.encoder, attribute)
        count = len(layers)
        self.indices = resolve_indices(selected, count, key)
        self.combine = combine
        self._recorded: dict[int, Tensor] = {}
        self._output = count
        # Index 0 is the input of the first layer, so at least one layer stays.
        self.layers = layers[first : max(*self.indices, first + 1)]
        setattr(model.encoder, attribute, self.layers)
        self._model = model
        self.reads_output = count in self.indices
        for index in set(self.indices) - {count}:
            if index == first:
                record = partial(self._record_input, index)
                self.layers[0].register_forward_pre_hook(record, with_kwargs=True)
            else:
                record = partial(self._record_output, index)
                self.layers[index - first - 1].register_forward_hook(record)

    def width(self, hidden: int) -> int:
        """Width of the selected states of a model whose hidden states have width `hidden`."""
        return hidden * len(self.indices) if self.combine == "concat" else hidden

    def count_parameters(self) -> dict[str, int]:
        """Parameters below each selected layer, itself included, with what no layer owns."""
        everything = sum(parameter.numel() for parameter in self._model.parameters())
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.layers]
        return {str(index): everything - sum(sizes[max(index, 1) :]) for index in self.indices}

    def gather(self, output: Tensor) -> Tensor:
        """The selected states [B, T, width] in float32, after a forward pass.

        Args:
            output: the model's last hidden state.
        """
        states = [
            (output if index == self._output else self._recorded[index]).float()
            for index in self.indices
        ]
        self._recorded.clear()
        if len(states) == 1:
            return states[0]
        if self.combine == "concat":
            return torch.cat(states, dim=-1)
        return torch.stack(states).mean(dim=0)

    # Bound methods, so that a deep copy of the model records in a copy of its selector.
    def _record_input(
        self, index: int, _module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        self._recorded[index] = args[0] if args else kwargs["hidden_states"]

    def _record_output(self, index: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self._recorded[index] = output[0] if isinstance(output, tuple) else output


def resolve_indices(selected: Sequence[int], count: int, key: str) -> tuple[int, ...]:
    """Indices of hidden states counted from 0, of a model with `count` layers.

    Raises:
        UsageError: the model has no such layer.
    """
    for index in selected:
        if not -count - 1 <= index <= count:
            raise UsageError(
                f"{key}: {index} is not a layer of this encoder; it has {count} layers, "
                f"so use 0 to {count} or -1 to {-count - 1}"
            )
    return tuple(index % (count + 1) for index in selected)
