"""The training step: the one place where gradients are made, exchanged and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multistill.training.distributed import ProcessGroup
from multistill.training.optimizer import NamedAdamW
from multistill.training.prefetch import MicroBatch


class FlatGradients:
    """All gradients of a model as views of one buffer, with one more number for the loss.

    One buffer makes the exchange between workers one collective and the norm one kernel.
    Backward passes add into the views, so accumulation needs no further code, and a worker
    without a row in a batch contributes zeros instead of breaking the collective.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        trained = [p for p in parameters if p.requires_grad]
        self.buffer = torch.zeros(
            sum(p.numel() for p in trained) + 1, dtype=torch.float32, device=device
        )
        start = 0
        for parameter in trained:
            end = start + parameter.numel()
            parameter.grad = self.buffer[start:end].view_as(parameter)
            start = end

    @property
    def gradients(self) -> Tensor:
        return self.buffer[:-1]

    @property
    def loss(self) -> Tensor:
        return self.buffer[-1]


@dataclass(frozen=True)
class StepResult:
    """What a step found, still on the device.

    Attributes:
        figures: [2] mean loss over the global batch, gradient norm before clipping.
        rows: row numbers of this worker's pieces, and `losses` [b] of each, in that order.
    """

    figures: Tensor
    rows: list[list[int]]
    losses: list[Tensor]


def training_step(
    pieces: Iterable[MicroBatch],
    sample_losses: Callable[[MicroBatch], Tensor],
    batch_rows: int,
    flat: FlatGradients,
    optimizer: NamedAdamW,
    *,
    rate: float,
    clip_norm: float,
    world: ProcessGroup,
) -> StepResult:
    """One optimiser step over one global batch.

    Losses are summed over rows and divided by the rows of the whole batch, over all workers
    and pieces. So neither the number of workers nor the number of pieces changes the
    gradient, no row counts twice and none is dropped. Gradients are exchanged once, at the end.

    Args:
        pieces: this worker's part of the batch; may be empty.
        sample_losses: losses [b] of the rows of a piece.
        batch_rows: rows of the batch over all workers.
    """
    flat.buffer.zero_()
    rows: list[list[int]] = []
    seen: list[Tensor] = []
    for piece in pieces:
        losses = sample_losses(piece)
        total = losses.sum() / batch_rows
        total.backward()
        flat.loss.add_(total.detach())
        rows.append(piece.rows)
        seen.append(losses.detach())
    world.sum(flat.buffer)
    norm = torch.linalg.vector_norm(flat.gradients)
    flat.gradients.mul_((clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step(rate)
    return StepResult(torch.stack((flat.loss, norm)), rows, seen)
