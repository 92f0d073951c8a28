"""The group of workers that train one model together, without saying who started them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and size of the group, and its one collective: an in-place sum over all ranks.

    Everything the loop needs is a sum: gradients, losses, gathered logits (each rank fills
    its own rows of zeros) and a broadcast (all but one rank send zeros).
    """

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], object] | None = None

    def __post_init__(self) -> None:
        if self.size > 1 and self.all_reduce is None:
            raise ValueError("a world of several ranks needs `all_reduce`")

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over ranks, on every rank; returns it."""
        if self.all_reduce is not None and self.size > 1:
            self.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by the first rank's."""
        if self.size > 1:
            if not self.is_main:
                tensor.zero_()
            self.sum(tensor)
        return tensor


def torch_process_group(
    group: torch.distributed.ProcessGroup | None, ranks: int, rank: int
) -> ProcessGroup:
    """A world over an initialised `torch.distributed` group."""
    if ranks == 1:
        return ProcessGroup()

    def all_reduce(tensor: Tensor) -> None:
        torch.distributed.all_reduce(tensor, group=group)

    return ProcessGroup(rank, ranks, all_reduce)
