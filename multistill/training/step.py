"""The training step: computes gradients, sums them over the process group and applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multistill.training.distributed import ProcessGroup
from multistill.training.optimizer import NamedAdamW
from multistill.training.prefetch import MicroBatch


class FlatGradients:
    """All gradients of a model as views of one buffer, which also has an element for the loss.

    With one buffer, the sum over workers is one collective and the norm is one kernel. Backward
    passes accumulate into the views, and a worker without rows in a batch contributes zeros
    instead of missing the collective.
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
    """Losses of a step, still on the device.

    Attributes:
        loss_and_norm: [2], mean loss over the global batch and gradient norm before clipping.
        rows: row indices of each micro-batch of this worker.
        losses: loss of each of these rows, per micro-batch [b].
    """

    loss_and_norm: Tensor
    rows: list[list[int]]
    losses: list[Tensor]


def training_step(
    micro_batches: Iterable[MicroBatch],
    sample_losses: Callable[[MicroBatch], Tensor],
    batch_size: int,
    flat: FlatGradients,
    optimizer: NamedAdamW,
    *,
    learning_rate: float,
    clip_norm: float,
    group: ProcessGroup,
) -> StepResult:
    """Run one optimizer step on one global batch.

    Losses are summed over rows and divided by the number of rows of the global batch, over all
    workers and micro-batches. So the gradient depends neither on the number of workers nor on
    the number of micro-batches, and every row counts exactly once. Gradients are summed over
    workers once, at the end.

    Args:
        micro_batches: this worker's part of the batch; may be empty.
        sample_losses: returns the losses [b] of the rows of a micro-batch.
        batch_size: rows of the global batch.
    """
    flat.buffer.zero_()
    rows: list[list[int]] = []
    row_losses: list[Tensor] = []
    for micro_batch in micro_batches:
        losses = sample_losses(micro_batch)
        total = losses.sum() / batch_size
        total.backward()
        flat.loss.add_(total.detach())
        rows.append(micro_batch.rows)
        row_losses.append(losses.detach())
    group.sum(flat.buffer)
    norm = torch.linalg.vector_norm(flat.gradients)
    flat.gradients.mul_((clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step(learning_rate)
    return StepResult(torch.stack((flat.loss, norm)), rows, row_losses)
