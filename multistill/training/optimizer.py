"""AdamW, its state as named tensors, and the arithmetic a device can do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) on all parameters that are trained, as published.

    Torch's own functional form. The class `torch.optim.AdamW` around it imports torch's
    compiler on first use: 870 modules and 2 s of processor time in every worker and trial.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.weight_decay = weight_decay
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply the gradients that the parameters hold."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self.parameters)
        adamw(
            list(self.parameters),
            gradients,
            self.means,
            self.squares,
            [],
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state as `<parameter>/<slot>` tensors, for safetensors."""
        found: dict[str, Tensor] = {}
        for name, mean, square, step in zip(
            self.names, self.means, self.squares, self.steps, strict=True
        ):
            found |= {f"{name}/mean": mean, f"{name}/square": square, f"{name}/step": step}
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state of `tensors`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


def runs_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: asked for, or `auto` on a GPU that is made for it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
