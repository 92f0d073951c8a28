"""What a task minimises: labels alone, or labels and a teacher."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from multistill.config import CLASSES, TrainConfig
from multistill.distillation.losses import distillation_loss
from multistill.distillation.representations import Hint, LinearCKA
from multistill.distillation.schedule import scheduled_weight
from multistill.metrics.classification import from_confusion
from multistill.models.build import ModelOutput
from multistill.models.losses import class_weights, label_loss
from multistill.training.data import Rows
from multistill.training.prefetch import MicroBatch
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray


class Objective(nn.Module):
    """The loss of each utterance under a task.

    Its own parameters (a hint's projection) are trained beside the model's and are part of
    the checkpoints, never of the model.

    Args:
        train: class weights count its labels; its teacher's states decide a hint's width.
        pooled_dim: width of the model's pooled states.
    """

    weights: Tensor | None

    def __init__(self, task: TrainingTask, train: Rows, pooled_dim: int) -> None:
        super().__init__()
        self.config, self.distillation = task.train, task.distillation
        weights = class_weights(torch.from_numpy(train.shares), self.config.class_weights)
        self.register_buffer("weights", weights, persistent=False)
        self.hint: Hint | None = None
        self.cka: LinearCKA | None = None
        taught, distillation = train.states, self.distillation
        if taught is not None and distillation is not None:
            if distillation.hint_weight:
                self.hint = Hint(pooled_dim, taught.table.shape[1], taught.spaces)
            if distillation.cka_weight:
                self.cka = LinearCKA(taught.spaces)

    @property
    def over_batch(self) -> bool:
        """Whether a row's loss depends on the rows that are computed with it."""
        distillation = self.distillation
        return self.cka is not None or (distillation is not None and distillation.loss == "dist")

    def forward(self, output: ModelOutput, piece: MicroBatch, progress: float) -> Tensor:
        """Losses [b].

        Args:
            progress: share of the training's steps that are done.
        """
        logits = output.logits.float()
        config, distillation = self.config, self.distillation
        if distillation is None:
            return label_loss(
                logits, piece.shares, piece.winner, config.loss, config.label_source, self.weights
            )
        assert piece.teacher is not None

        def scheduled(weight: float) -> float:
            return scheduled_weight(
                weight, distillation.schedule, progress, distillation.schedule_share
            )

        losses = distillation_loss(
            logits,
            piece.teacher,
            piece.shares,
            piece.winner,
            loss=distillation.loss,
            temperature=distillation.temperature,
            weight=scheduled(distillation.weight),
            standardize=distillation.standardize,
            dkd_alpha=distillation.dkd_alpha,
            dkd_beta=distillation.dkd_beta,
            label_kind=config.loss,
            label_source=config.label_source,
            class_weights=self.weights,
        ).total
        for weight, match in (
            (distillation.hint_weight, self.hint),
            (distillation.cka_weight, self.cka),
        ):
            if match is not None:
                found = match(output.pooled.float(), piece.teacher_states, piece.space)
                losses = losses + scheduled(weight) * found
        return losses


def scores(config: TrainConfig, logits: FloatArray, rows: Rows) -> dict[str, float]:
    """loss, accuracy, uar, macro_f1 and weighted_f1 of logits [N, 7], as the report defines them.

    The loss is the label loss without class weights: comparable between weightings, and
    between students with and without a teacher. Ties count for the loss only.
    """
    losses = label_loss(
        torch.from_numpy(logits),
        torch.from_numpy(rows.shares),
        torch.from_numpy(rows.winner),
        config.loss,
        config.label_source,
    )
    confusion = np.zeros((len(CLASSES), len(CLASSES)))
    decided = rows.winner >= 0
    np.add.at(confusion, (rows.winner[decided], logits[decided].argmax(axis=1)), 1)
    hard = {name: float(value) for name, value in from_confusion(confusion).items()}
    return {"loss": float(losses.double().mean()), **hard}


def sampling_weights(shares: FloatArray) -> npt.NDArray[np.float64]:
    """Chance of each row [N] to be drawn, so that all classes weigh the same in an epoch.

    A row with mixed votes counts for each class by its share.
    """
    counts = shares.sum(axis=0, dtype=np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights = shares @ inverse
    return np.asarray(weights / weights.sum())
