"""Stops a training at the first loss that is not finite, and says which utterances made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multistill.errors import MultistillError
from multistill.training.distributed import ProcessGroup
from multistill.training.step import StepResult
from multistill.typing import IntArray
from multistill.workspace import write_json

REPORT = "not-finite.json"


@dataclass
class _Pending:
    figures: Tensor
    ready: torch.cuda.Event | None
    result: StepResult
    batch: IntArray
    step: int


class NonFiniteCheck:
    """Looks at each step's loss and gradient norm one step late.

    Reading a number from a GPU waits for it. One step late, it is there already, so the
    guard costs no idle time. The step after a bad one may have run; nothing of it is kept.

    Args:
        ids: utterance ids of all rows.
        report: file that names the batch.
    """

    def __init__(self, ids: Sequence[str], report: Path, epoch: int, world: ProcessGroup) -> None:
        self.ids, self.report, self.epoch, self.world = ids, report, epoch, world
        self._pending: _Pending | None = None

    def check(self, result: StepResult, batch: IntArray, step: int) -> float:
        """Take up a step; returns the summed loss of the one before (0 for none).

        Raises:
            MultistillError: that loss or its gradient was not finite; on all ranks alike.
        """
        before = self.finish()
        figures, ready = result.figures, None
        if figures.is_cuda:
            host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
            figures = host
        self._pending = _Pending(figures, ready, result, batch, step)
        return before

    def finish(self) -> float:
        """Look at the last step; returns its summed loss."""
        pending, self._pending = self._pending, None
        if pending is None:
            return 0.0
        if pending.ready is not None:
            pending.ready.synchronize()
        loss, norm = pending.figures.tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return loss * len(pending.batch)
        raise self._stop(pending, loss, norm)

    def _stop(self, pending: _Pending, loss: float, norm: float) -> MultistillError:
        result = pending.result
        bad = torch.zeros(len(self.ids), dtype=torch.int32, device=result.figures.device)
        for rows, losses in zip(result.rows, result.losses, strict=True):
            where = torch.as_tensor(rows, device=bad.device)
            bad[where] = (~torch.isfinite(losses)).to(bad.dtype)
        suspects = [self.ids[row] for row in self.world.sum(bad).nonzero().flatten().tolist()]
        if self.world.is_main:
            write_json(
                self.report,
                {
                    "epoch": self.epoch,
                    "step": pending.step,
                    "loss": repr(loss),
                    "gradient_norm": repr(norm),
                    "not_finite": suspects,
                    "utterance_ids": [self.ids[row] for row in pending.batch.tolist()],
                },
            )
        what = "the loss" if not math.isfinite(loss) else "the gradient"
        named = f"utterance {suspects[0]}" if suspects else "no single utterance"
        more = f" and {len(suspects) - 1} more" if len(suspects) > 1 else ""
        return MultistillError(
            f"{what} is not finite in epoch {self.epoch}, step {pending.step} ({named}{more}); "
            f"the batch's utterance ids are in {self.report}; look at these clips, or lower "
            "`train.learning_rate`"
        )
