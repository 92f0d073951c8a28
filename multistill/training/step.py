"""The training step: computes gradients, sums them over the process group and applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multistill.training.distributed import ProcessGroup
from multistill.training.optimizer import NamedAdamW
from multistill.training.prefetch import MicroBatch

BUCKET_VALUES = 2**25
"""Gradients in one buffer, 128 MB: all of a head, and parts of an encoder."""


class FlatGradients:
    """The gradients of a model as views of a few buffers; the first has two elements more.

    They are the loss, and the number of workers that ask to stop.

    The sum over workers is one collective for each buffer. Backward passes accumulate into the
    views, and a worker without rows in a batch contributes zeros instead of missing the
    collective.

    Args:
        parameters: those that require no gradient are skipped.
        bucket: values of one buffer; a larger parameter has one of its own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        device: torch.device,
        bucket: int = BUCKET_VALUES,
    ) -> None:
        buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if buckets[-1] and size + parameter.numel() > bucket:
                buckets.append([])
                size = 0
            buckets[-1].append(parameter)
            size += parameter.numel()
        self.buffers: list[Tensor] = []
        for number, members in enumerate(buckets):
            values = sum(parameter.numel() for parameter in members) + 2 * (number == 0)
            buffer = torch.zeros(values, dtype=torch.float32, device=device)
            start = 0
            for parameter in members:
                end = start + parameter.numel()
                parameter.grad = buffer[start:end].view_as(parameter)
                start = end
            self.buffers.append(buffer)

    def zero(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    @property
    def gradients(self) -> list[Tensor]:
        return [self.buffers[0][:-2], *self.buffers[1:]]

    @property
    def loss(self) -> Tensor:
        return self.buffers[0][-2]

    @property
    def stops(self) -> Tensor:
        return self.buffers[0][-1]


class MicroBatchMemoryError(Exception):
    """The GPU has no memory for a micro-batch; nothing was applied yet."""


@dataclass(frozen=True)
class StepResult:
    """Losses of a step, still on the device.

    Attributes:
        scalars: [3], mean loss over the global batch, gradient norm before clipping, and the
            number of workers that ask to stop. Equal on all of them.
        rows: row indices of each micro-batch of this worker.
        losses: loss of each of these rows, per micro-batch [b].
    """

    scalars: Tensor
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
    stop: bool = False,
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
        stop: whether this worker asks all of them to stop.

    Raises:
        MicroBatchMemoryError: on this rank, before gradients are summed: the others wait for it.
    """
    flat.zero()
    if stop:
        flat.stops.fill_(1.0)
    rows: list[list[int]] = []
    row_losses: list[Tensor] = []
    for micro_batch in micro_batches:
        try:
            losses = sample_losses(micro_batch)
            total = losses.sum() / batch_size
            total.backward()
        except torch.OutOfMemoryError as error:
            raise MicroBatchMemoryError from error
        flat.loss.add_(total.detach())
        rows.append(micro_batch.rows)
        row_losses.append(losses.detach())
    for buffer in flat.buffers:
        group.sum(buffer)
    norms = [torch.linalg.vector_norm(gradients) for gradients in flat.gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for gradients in flat.gradients:
        gradients.mul_((clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step(learning_rate)
    return StepResult(torch.stack((flat.loss, norm, flat.stops)), rows, row_losses)
