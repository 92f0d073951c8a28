"""AdamW, its state as named tensors, and the arithmetic a device can do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW on all parameters, as published; the step sets its learning rate."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=weight_decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<slot>` tensors, for safetensors."""
    return {
        f"{name}/{slot}": optimizer.state[parameter][slot]
        for name, parameter in model.named_parameters()
        for slot in _SLOTS
        if parameter in optimizer.state
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Take up a state of `optimizer_tensors`."""
    state = {
        index: {slot: tensors[f"{name}/{slot}"] for slot in _SLOTS}
        for index, (name, _) in enumerate(model.named_parameters())
        if f"{name}/step" in tensors
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def runs_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: asked for, or `auto` on a GPU that is made for it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
