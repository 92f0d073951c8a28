"""Keep some layers of a transformer and compute none above them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multistill.errors import UsageError


class LayerSelector:
    """Taps a transformer's layer list; layers above the highest kept one are cut off.

    Index 0 is the input of layer 1, k the output of layer k, and the last (or -1) the
    model's own output, after its final layer norm where it has one.

    Args:
        layers: the model's layer list.
        cut: stores the shortened list in the model.
        where: job-file key, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        attribute: str,
        wanted: Sequence[int],
        combine: Literal["mean", "concat"],
        where: str,
    ) -> None:
        layers: nn.ModuleList = getattr(model.encoder, attribute)
        count = len(layers)
        for index in wanted:
            if not -count - 1 <= index <= count:
                raise UsageError(
                    f"{where}: {index} is not a layer of this encoder; it has {count}, "
                    f"so use 0 to {count} or -1 to {-count - 1}"
                )
        self.indices = tuple(index % (count + 1) for index in wanted)
        self.combine = combine
        self._seen: dict[int, Tensor] = {}
        self._output = count
        top = max(self.indices)
        # A model needs at least one layer: its input is what index 0 keeps.
        shortened = layers[: max(top, 1)]
        setattr(model.encoder, attribute, shortened)
        for index in set(self.indices) - {count}:
            if index == 0:
                shortened[0].register_forward_pre_hook(self._input_hook, with_kwargs=True)
            else:
                shortened[index - 1].register_forward_hook(self._hook(index))

    def width(self, hidden: int) -> int:
        return hidden * len(self.indices) if self.combine == "concat" else hidden

    def gather(self, output: Tensor) -> Tensor:
        """The kept states [B, T, width] in float32, after the model ran.

        Args:
            output: the model's last hidden state.
        """
        found = [output if index == self._output else self._seen[index] for index in self.indices]
        states = [state.float() for state in found]
        self._seen.clear()
        if len(states) == 1:
            return states[0]
        if self.combine == "concat":
            return torch.cat(states, dim=-1)
        return torch.stack(states).mean(dim=0)

    def _input_hook(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._seen[0] = args[0] if args else kwargs["hidden_states"]

    def _hook(self, index: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._seen[index] = output[0] if isinstance(output, tuple) else output

        return keep
