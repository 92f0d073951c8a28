"""Stops a training at the first loss that is not finite and reports the utterances at fault."""

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
class _PendingStep:
    scalars: Tensor
    copied: torch.cuda.Event | None
    result: StepResult
    batch: IntArray
    step: int


class NonFiniteCheck:
    """Checks the loss, the gradient norm and the stop requests of each step, one step late.

    Reading a value from a GPU waits for its computation. One step later the value has already
    been copied to the host, so the check does not stall the GPU. The step after a bad one may
    have run; its weights are never saved.

    Args:
        ids: utterance ids of all training rows.
        report: path of the report that is written before the error is raised.

    Attributes:
        stop: whether a worker asked to stop in a step that was checked. Equal on all of them.
    """

    def __init__(self, ids: Sequence[str], report: Path, epoch: int, group: ProcessGroup) -> None:
        self.ids, self.report, self.epoch, self.group = ids, report, epoch, group
        self.stop = False
        self._pending: _PendingStep | None = None

    def check(self, result: StepResult, batch: IntArray, step: int) -> float:
        """Enqueue a step and check the previous one.

        Args:
            batch: row indices of the global batch.

        Returns:
            the summed loss of the previous step, 0 if there is none.

        Raises:
            MultistillError: the previous loss or gradient is not finite. Raised on all ranks.
        """
        previous_loss = self.finish()
        values, copied = result.scalars, None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values = host
        self._pending = _PendingStep(values, copied, result, batch, step)
        return previous_loss

    def finish(self) -> float:
        """Check the last step and return its summed loss."""
        pending, self._pending = self._pending, None
        if pending is None:
            return 0.0
        if pending.copied is not None:
            pending.copied.synchronize()
        loss, norm, stops = pending.scalars.tolist()
        self.stop = self.stop or stops > 0
        if math.isfinite(loss) and math.isfinite(norm):
            return loss * len(pending.batch)
        raise self._write_report(pending, loss, norm)

    def _write_report(self, pending: _PendingStep, loss: float, norm: float) -> MultistillError:
        result = pending.result
        bad = torch.zeros(len(self.ids), dtype=torch.int32, device=result.scalars.device)
        for rows, losses in zip(result.rows, result.losses, strict=True):
            index = torch.as_tensor(rows, device=bad.device)
            bad[index] = (~torch.isfinite(losses)).to(bad.dtype)
        bad_ids = [self.ids[row] for row in self.group.sum(bad).nonzero().flatten().tolist()]
        if self.group.is_main:
            write_json(
                self.report,
                {
                    "epoch": self.epoch,
                    "step": pending.step,
                    "loss": repr(loss),
                    "gradient_norm": repr(norm),
                    "not_finite": bad_ids,
                    "utterance_ids": [self.ids[row] for row in pending.batch.tolist()],
                },
            )
        quantity = "the loss" if not math.isfinite(loss) else "the gradient"
        cause = f"utterance {bad_ids[0]}" if bad_ids else "no single utterance"
        more = f" and {len(bad_ids) - 1} more" if len(bad_ids) > 1 else ""
        return MultistillError(
            f"{quantity} is not finite in epoch {self.epoch}, step {pending.step} ({cause}{more}); "
            f"the utterance ids of the batch are in {self.report}; check these clips, or lower "
            "`train.learning_rate`"
        )
