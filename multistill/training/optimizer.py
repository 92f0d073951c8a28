"""AdamW, its state as named tensors, and the arithmetic a device can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SLOTS = ("exp_avg", "exp_avg_sq", "step")
"""State of `torch.optim.AdamW` for each parameter."""


class NamedAdamW:
    """`torch.optim.AdamW` (Loshchilov and Hutter 2019) over parameters with names.

    The names make the state a flat mapping of tensors, which safetensors can store.

    Args:
        parameters: name and parameter; those that need no gradient are skipped.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.torch = torch.optim.AdamW(
            self.parameters, lr=0.0, weight_decay=weight_decay, fused=True
        )

    def step(self, rate: float) -> None:
        """Apply the gradients that the parameters hold, with this learning rate."""
        for group in self.torch.param_groups:
            group["lr"] = rate
        self.torch.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as `<parameter>/<slot>` tensors; empty before the first step."""
        return {
            f"{name}/{slot}": self.torch.state[parameter][slot]
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for slot in SLOTS
            if parameter in self.torch.state
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state of `tensors`."""
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self.torch.state[parameter] = {
                slot: tensors[f"{name}/{slot}"].to(parameter.device, copy=True) for slot in SLOTS
            }


def runs_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: requested, or `auto` on a GPU that is made for it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
