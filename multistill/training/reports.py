"""What a training tells its caller: an epoch has ended, or the training was interrupted."""

from __future__ import annotations

from dataclasses import dataclass


class TrainingInterrupted(Exception):  # noqa: N818 - nothing failed
    """A training was asked to stop and has saved its state after the step.

    Attributes:
        epoch: finished epochs.
        steps: that the checkpoint holds of the next one.
    """

    def __init__(self, epoch: int, steps: int) -> None:
        super().__init__(f"interrupted after {epoch} epochs and {steps} steps")
        self.epoch, self.steps = epoch, steps


@dataclass(frozen=True)
class EpochReport:
    """Metrics of one epoch.

    Attributes:
        epoch: 1 for the first.
        metrics: train_loss, learning_rate, seconds, samples_per_second and, if there are
            validation rows, valid_loss and what else `validation_metrics` gives: valid_uar,
            valid_macro_f1, valid_ccc. Equal on all ranks, except for the times.
        stop: whether this is the last epoch: of the budget, or because the task's patience has
            run out.
    """

    epoch: int
    metrics: dict[str, float]
    stop: bool
