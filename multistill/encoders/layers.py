"""Select hidden states of a transformer and skip the layers above them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multistill.encoders.kinds import layer_problem
from multistill.errors import UsageError


class LayerSelector:
    """Records selected hidden states with forward hooks; removes the layers above the highest.

    Indices are those of `output_hidden_states`: 0 is the input of layer 1, k the output of layer
    k, and the last (or -1) the output of the model, after its final layer norm if it has one.

    Args:
        attribute: name of the layer list in `model.encoder`; the list is shortened in place.
        selected: indices of hidden states.
        combine: how several hidden states become one.
        key: job-file key, for messages.

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
        layers: nn.ModuleList = getattr(model.encoder, attribute)
        count = len(layers)
        for index in selected:
            if problem := layer_problem(index, count):
                raise UsageError(f"{key}: {problem}")
        self.indices = tuple(index % (count + 1) for index in selected)
        self.combine = combine
        self._recorded: dict[int, Tensor] = {}
        self._output = count
        top = max(self.indices)
        # Index 0 is the input of the first layer, so at least one layer stays.
        shortened = layers[: max(top, 1)]
        setattr(model.encoder, attribute, shortened)
        self._model, self._layers = model, shortened
        for index in set(self.indices) - {count}:
            if index == 0:
                shortened[0].register_forward_pre_hook(self._input_hook, with_kwargs=True)
            else:
                shortened[index - 1].register_forward_hook(self._hook(index))

    def width(self, hidden: int) -> int:
        """Width of the selected states of a model whose hidden states have width `hidden`."""
        return hidden * len(self.indices) if self.combine == "concat" else hidden

    def count_parameters(self) -> dict[str, int]:
        """Parameters below each selected layer, itself included, with what no layer owns."""
        everything = sum(parameter.numel() for parameter in self._model.parameters())
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self._layers]
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

    def _input_hook(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._recorded[0] = args[0] if args else kwargs["hidden_states"]

    def _hook(self, index: int) -> Any:
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            self._recorded[index] = output[0] if isinstance(output, tuple) else output

        return record
