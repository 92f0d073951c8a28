"""AdamW whose state is a flat mapping of named tensors, and the choice of precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

STATE_NAMES = ("exp_avg", "exp_avg_sq", "step")
"""State of `torch.optim.AdamW` for each parameter."""


class NamedAdamW:
    """`torch.optim.AdamW` (Loshchilov and Hutter 2019) over named parameters.

    Its state is a flat mapping of tensors, which safetensors can store.

    Args:
        parameters: names and parameters; those that require no gradient are skipped.
        rates: factor of the learning rate of some parameters, by name; 1 for all others.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault((rates or {}).get(name, 1.0), []).append(parameter)
        self.adamw = torch.optim.AdamW(
            [{"params": group, "rate": rate} for rate, group in groups.items()],
            lr=0.0,
            weight_decay=weight_decay,
            fused=True,
        )

    def step(self, learning_rate: float) -> None:
        """Apply the gradients, where there are any, with this learning rate times the factors."""
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.adamw.step()

    def state_dict(self) -> dict[str, Tensor]:
        """The state as `<parameter>/<state name>` tensors, of what was stepped so far."""
        return {
            f"{name}/{state_name}": self.adamw.state[parameter][state_name]
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for state_name in STATE_NAMES
            if parameter in self.adamw.state
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state of `state_dict`; other tensors are ignored."""
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if f"{name}/{STATE_NAMES[0]}" in tensors:  # a layer may not have started to train
                self.adamw.state[parameter] = {
                    state_name: tensors[f"{name}/{state_name}"].to(parameter.device, copy=True)
                    for state_name in STATE_NAMES
                }


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: if requested, or for `auto` on a GPU with native support."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
