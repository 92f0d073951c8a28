"""Select hidden states of a transformer and leave out the layers above and below them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from multistill.encoders.trained_layers import resolve_indices


class LayerSelector:
    """Records selected hidden states with forward hooks; removes the layers that are not needed.

    Indices are those of `output_hidden_states`: 0 is the input of layer 1, k the output of layer
    k, and the last (or -1) the output of the model, after its final layer norm if it has one.

    Args:
        attribute: name of the layer list in `model.encoder`; the list is shortened in place.
        selected: indices of hidden states.
        combine: how several hidden states become one.
        key: job-file key, for messages.

    Attributes:
        layers: those that are left.
        count: layers that the model has.

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
    ) -> None:
        self.layers: nn.ModuleList = getattr(model.encoder, attribute)
        self.count = len(self.layers)
        self.indices = resolve_indices(selected, self.count, key)
        self.combine = combine
        self._recorded: dict[int, Tensor] = {}
        self._model, self._attribute = model, attribute
        self._hooks: list[RemovableHandle] = []
        self._keep(0)

    @property
    def reads_output(self) -> bool:
        """Whether the output of the model is one of the selected states."""
        return self.count in self.indices

    def start_at(self, first: int) -> None:
        """Remove the layers below hidden state `first`, which the model is then given as input."""
        self._keep(first)

    def _keep(self, first: int) -> None:
        # Index 0 is the input of the first layer, so at least one layer stays.
        self.layers = self.layers[first : max(*self.indices, first + 1)]
        setattr(self._model.encoder, self._attribute, self.layers)
        for hook in self._hooks:
            hook.remove()
        for index in set(self.indices) - {self.count}:
            if index == first:
                record = partial(self._record_input, index)
                hook = self.layers[0].register_forward_pre_hook(record, with_kwargs=True)
            else:
                record = partial(self._record_output, index)
                hook = self.layers[index - first - 1].register_forward_hook(record)
            self._hooks.append(hook)

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
            (output if index == self.count else self._recorded[index]).float()
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
