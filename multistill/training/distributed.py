"""The group of processes that train one model, independent of who started them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and size of a process group, and its only collective: an in-place sum over all ranks.

    The loop needs nothing but sums: of gradients and losses, of logits (to gather them, each
    rank fills its own rows of a zero tensor), and to broadcast (all other ranks send zeros).
    """

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], object] | None = None

    def __post_init__(self) -> None:
        if self.size > 1 and self.all_reduce is None:
            raise ValueError("a process group of several ranks needs `all_reduce`")

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over ranks, on every rank, and return it."""
        if self.all_reduce is not None and self.size > 1:
            self.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by that of rank 0, on every rank, and return it."""
        if self.size > 1:
            if not self.is_main:
                tensor.zero_()
            self.sum(tensor)
        return tensor


def torch_process_group(
    group: torch.distributed.ProcessGroup | None, size: int, rank: int
) -> ProcessGroup:
    """Wrap an initialised `torch.distributed` group; None: the default group."""
    if size == 1:
        return ProcessGroup()

    def all_reduce(tensor: Tensor) -> None:
        torch.distributed.all_reduce(tensor, group=group)

    return ProcessGroup(rank, size, all_reduce)
